/* A fault is written down where a reset leaves it, and told at the next boot.
 *
 * The stack lies at the bottom of RAM: one that overflows runs into nothing and faults, instead of
 * into variables. The handler therefore starts on a fresh stack.
 */
#include "fault.h"

#include <stdint.h>
#include <string.h>

#include "board.h"
#include "cortex_m4.h"

#define SCB_CFSR REGISTER(0xE000ED28u)
#define SCB_HFSR REGISTER(0xE000ED2Cu)
#define SCB_BFAR REGISTER(0xE000ED38u)

static const uint32_t FAULT_MAGIC = 0x544C4146u;

extern uint32_t stack_bottom[], stack_top[];

__attribute__((section(".noinit"))) static struct {
    uint32_t magic, pc, lr, sp, cfsr, hfsr, bfar;
} last;

__attribute__((used)) _Noreturn void record_fault(const uint32_t *frame);

/* r0, r1, r2, r3, r12, lr, pc, xpsr, as the core pushes them. */
_Noreturn void record_fault(const uint32_t *frame)
{
    uintptr_t at = (uintptr_t)frame;
    bool readable = at >= (uintptr_t)stack_bottom && at + 32 <= (uintptr_t)stack_top && at % 4 == 0;
    last.pc = readable ? frame[6] : 0;
    last.lr = readable ? frame[5] : 0;
    last.sp = (uint32_t)at;
    last.cfsr = SCB_CFSR;
    last.hfsr = SCB_HFSR;
    last.bfar = SCB_BFAR;
    last.magic = FAULT_MAGIC;
    board_reset();
}

__attribute__((naked)) void hard_fault_handler(void)
{
    __asm volatile("mrs r0, msp\n"
                   "ldr r1, =stack_top\n"
                   "subs r2, r1, #512\n"
                   "cmp r0, r2\n"
                   "blo 1f\n"      /* the frame is not near the top: a fresh stack is safe */
                   "subs r1, r0, #8\n"
                   "bic r1, r1, #7\n"
                   "1: msr msp, r1\n"
                   "b record_fault\n");
}

static char *put_word(char *to, const char *name, uint32_t value)
{
    size_t length = strlen(name);
    memcpy(to, name, length);
    to += length;
    for (int shift = 28; shift >= 0; shift -= 4) {
        *to++ = "0123456789abcdef"[(value >> shift) & 15u];
    }
    return to;
}

size_t board_fault_text(char *to, size_t room)
{
    static const char *const names[] = {
        "hard fault at pc ", " lr ", " sp ", " cfsr ", " hfsr ", " bfar ",
    };
    const uint32_t values[] = {last.pc, last.lr, last.sp, last.cfsr, last.hfsr, last.bfar};
    if (last.magic != FAULT_MAGIC || room < 112) {
        return 0;
    }
    last.magic = 0;
    char *end = to;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        end = put_word(end, names[i], values[i]);
    }
    *end = '\0';
    return (size_t)(end - to);
}
