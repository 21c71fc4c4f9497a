// SPDX-License-Identifier: GPL-2.0
/* Test fixture: replaces an entry of the table of system calls. */
#include <linux/ptrace.h>
#include "attacker.h"

static unsigned long table;
static int number = 110;
module_param(table, ulong, 0);
module_param(number, int, 0);

static long (*before)(const struct pt_regs *);

static noinline long replacement(const struct pt_regs *regs)
{
	return before(regs);
}

static int __init syscall_table_init(void)
{
	void *entry = (void *)table + number * sizeof(long);
	void *now = replacement;

	if (!table)
		return -EINVAL;
	memcpy(&before, entry, sizeof(before));
	overwrite(entry, &now, sizeof(now));
	return 0;
}

static void __exit syscall_table_exit(void)
{
	overwrite((void *)table + number * sizeof(long), &before, sizeof(before));
}

module_init(syscall_table_init);
module_exit(syscall_table_exit);
