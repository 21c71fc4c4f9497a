/* SPDX-License-Identifier: GPL-2.0 */
/* Test fixtures of a defensive tool: what several of them need. */
#ifndef ATTACKER_H
#define ATTACKER_H
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/string.h>

/* Writes to memory that is mapped read-only. */
static inline void overwrite(void *at, const void *bytes, size_t length)
{
	unsigned long flags, cr0;

	local_irq_save(flags);
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~(1UL << 16)) : "memory");
	memcpy(at, bytes, length);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

/* The kernel's GPL-only symbols can be had by such modules only. */
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test fixture: makes one change that must be found");
#endif
