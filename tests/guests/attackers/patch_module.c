// SPDX-License-Identifier: GPL-2.0
/* Test fixture: changes two bytes of code of another module (meant for a function that nobody calls). */
#include "attacker.h"

static unsigned long at;
module_param(at, ulong, 0);

static char before[2];

static int __init patch_module_init(void)
{
	if (!at)
		return -EINVAL;
	memcpy(before, (void *)at, sizeof(before));
	overwrite((void *)at, "\x0f\x0b", sizeof(before));
	return 0;
}

static void __exit patch_module_exit(void)
{
	overwrite((void *)at, before, sizeof(before));
}

module_init(patch_module_init);
module_exit(patch_module_exit);
