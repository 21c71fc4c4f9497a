// SPDX-License-Identifier: GPL-2.0
/* Test fixture: points the first entry of a read-only table of operations (start of a seq_file) at itself. */
#include <linux/seq_file.h>
#include "attacker.h"

static unsigned long at;
module_param(at, ulong, 0);

static void *(*before)(struct seq_file *, loff_t *);

static void *replacement(struct seq_file *file, loff_t *position)
{
	return before(file, position);
}

static int __init patch_rodata_init(void)
{
	void *now = replacement;

	if (!at)
		return -EINVAL;
	memcpy(&before, (void *)at, sizeof(before));
	overwrite((void *)at, &now, sizeof(now));
	return 0;
}

static void __exit patch_rodata_exit(void)
{
	overwrite((void *)at, &before, sizeof(before));
}

module_init(patch_rodata_init);
module_exit(patch_rodata_exit);
