// SPDX-License-Identifier: GPL-2.0
/* Test fixture: points an interrupt gate at a stub that jumps on to the handler before. */
#include <asm/desc_defs.h>
#include "attacker.h"

static unsigned long table;
static int vector = 4;
module_param(table, ulong, 0);
module_param(vector, int, 0);

unsigned long idt_gate_before;
void idt_gate_stub(void);
asm(".pushsection .text\n"
    ".globl idt_gate_stub\n"
    "idt_gate_stub: jmp *idt_gate_before(%rip)\n"
    ".popsection\n");

static gate_desc old;

static int __init idt_gate_init(void)
{
	unsigned long stub = (unsigned long)idt_gate_stub;
	gate_desc now;

	if (!table)
		return -EINVAL;
	memcpy(&old, (gate_desc *)table + vector, sizeof(old));
	now = old;
	idt_gate_before = old.offset_low | (unsigned long)old.offset_middle << 16 | (unsigned long)old.offset_high << 32;
	now.offset_low = stub;
	now.offset_middle = stub >> 16;
	now.offset_high = stub >> 32;
	overwrite((gate_desc *)table + vector, &now, sizeof(now));
	return 0;
}

static void __exit idt_gate_exit(void)
{
	overwrite((gate_desc *)table + vector, &old, sizeof(old));
}

module_init(idt_gate_init);
module_exit(idt_gate_exit);
