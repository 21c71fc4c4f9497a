// SPDX-License-Identifier: GPL-2.0
/* Test fixture: does nothing; the clean twin of the others. */
#include "attacker.h"

static int __init harmless_init(void)
{
	return 0;
}

static void __exit harmless_exit(void)
{
}

module_init(harmless_init);
module_exit(harmless_exit);
