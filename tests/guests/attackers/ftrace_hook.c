// SPDX-License-Identifier: GPL-2.0
/* Test fixture: registers a tracer on one function; it does nothing when called. */
#include <linux/ftrace.h>
#include <linux/version.h>
#include "attacker.h"

static char *function = "vfs_statx";
module_param(function, charp, 0);

#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 11, 0)
static void notrace on_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
#else
static void notrace on_call(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct pt_regs *regs)
#endif
{
}

static struct ftrace_ops hook = { .func = on_call };

static int __init ftrace_hook_init(void)
{
	int error = ftrace_set_filter(&hook, function, strlen(function), 1);

	return error ? error : register_ftrace_function(&hook);
}

static void __exit ftrace_hook_exit(void)
{
	unregister_ftrace_function(&hook);
}

module_init(ftrace_hook_init);
module_exit(ftrace_hook_exit);
