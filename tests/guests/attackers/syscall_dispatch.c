// SPDX-License-Identifier: GPL-2.0
/* Test fixture: redirects the call (or jump) that x64_sys_call makes for one system call. */
#include <linux/ptrace.h>
#include "attacker.h"

static unsigned long site;
module_param(site, ulong, 0);

static long (*before)(const struct pt_regs *);
static s32 displacement;

static noinline long replacement(const struct pt_regs *regs)
{
	return before(regs);
}

/* `site` is the address of the instruction: one byte, then the displacement. */
static int __init syscall_dispatch_init(void)
{
	s32 now = (s32)((unsigned long)replacement - (site + 5));

	if (!site)
		return -EINVAL;
	memcpy(&displacement, (void *)site + 1, sizeof(displacement));
	before = (void *)(site + 5 + displacement);
	overwrite((void *)site + 1, &now, sizeof(now));
	return 0;
}

static void __exit syscall_dispatch_exit(void)
{
	overwrite((void *)site + 1, &displacement, sizeof(displacement));
}

module_init(syscall_dispatch_init);
module_exit(syscall_dispatch_exit);
