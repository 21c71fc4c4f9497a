// SPDX-License-Identifier: GPL-2.0
/* Test fixture: a kprobe on a function; its handler does nothing. */
#include <linux/kprobes.h>
#include "attacker.h"

static char *function = "vfs_fsync";
module_param(function, charp, 0);

static int on_hit(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static struct kprobe probe = { .pre_handler = on_hit };

static int __init kprobe_hook_init(void)
{
	probe.symbol_name = function;
	return register_kprobe(&probe);
}

static void __exit kprobe_hook_exit(void)
{
	unregister_kprobe(&probe);
}

module_init(kprobe_hook_init);
module_exit(kprobe_hook_exit);
