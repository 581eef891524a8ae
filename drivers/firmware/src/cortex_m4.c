/* The Cortex-M4 itself: start-up, ticks, sleep, reset, and a record of what ended the last boot. */
#include "cortex_m4.h"

#include <stddef.h>
#include <string.h>

#include "board.h"
#include "fault.h"

#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)
#define SCB_VTOR REGISTER(0xE000ED08u)
#define SCB_AIRCR REGISTER(0xE000ED0Cu)
#define SCB_CPACR REGISTER(0xE000ED88u)

enum { SYSTICK_BITS = 24, SYSTICK_LAST = (1 << SYSTICK_BITS) - 1 };

extern uint32_t stack_bottom[], stack_top[];
extern uint32_t data_load[], data_start[], data_end[], bss_start[], bss_end[];

static const uint32_t STACK_PAINT = 0xA5A5A5A5u;
static const uint32_t NOINIT_MAGIC = 0x434F5254u;

/* Survives a reset; garbage after power-on, which the magic number tells. */
__attribute__((section(".noinit"))) static struct {
    uint32_t magic, boots;
} lasting;

static volatile uint32_t wraps; /* of SysTick */

int main(void);
_Noreturn void reset_handler(void);
void systick_handler(void);

__attribute__((section(".vectors.core"), used)) static const vector core_vectors[16] = {
    (vector)(uintptr_t)stack_top,
    reset_handler,
    [2] = hard_fault_handler,
    [3] = hard_fault_handler,
    [4] = hard_fault_handler,
    [5] = hard_fault_handler,
    [6] = hard_fault_handler,
    [11] = hard_fault_handler,
    [12] = hard_fault_handler,
    [14] = hard_fault_handler,
    [15] = systick_handler,
};

static void prepare_memory(void)
{
    memcpy(data_start, data_load, (size_t)((uintptr_t)data_end - (uintptr_t)data_start));
    memset(bss_start, 0, (size_t)((uintptr_t)bss_end - (uintptr_t)bss_start));
    volatile uint32_t *here = __builtin_frame_address(0);
    for (volatile uint32_t *word = stack_bottom; word < here - 32; word++) {
        *word = STACK_PAINT;
    }
}

static void count_boot(void)
{
    if (lasting.magic != NOINIT_MAGIC) {
        lasting.magic = NOINIT_MAGIC;
        lasting.boots = 0;
    }
    lasting.boots++;
}

_Noreturn void reset_handler(void)
{
    SCB_CPACR |= 0xFu << 20; /* the floating-point unit, before any code that may use it */
    __asm volatile("dsb\n isb" ::: "memory");
    prepare_memory();
    SCB_VTOR = (uint32_t)(uintptr_t)core_vectors;
    count_boot();
    SYST_RVR = SYSTICK_LAST;
    SYST_CVR = 0;
    SYST_CSR = 7; /* processor clock, interrupt, on */
    main();
    board_reset();
}

void systick_handler(void)
{
    wraps++;
}


uint32_t board_ticks(void)
{
    uint32_t high, low;
    do {
        high = wraps;
        low = SYST_CVR;
    } while (high != wraps);
    return (high << SYSTICK_BITS) + (SYSTICK_LAST - low);
}

void board_sleep_unless(bool (*ready)(void))
{
    __asm volatile("cpsid i" ::: "memory"); /* an interrupt between check and sleep still wakes */
    if (!ready()) {
        __asm volatile("dsb\n wfi" ::: "memory");
    }
    __asm volatile("cpsie i\n isb" ::: "memory");
}

_Noreturn void board_reset(void)
{
    __asm volatile("dsb" ::: "memory");
    SCB_AIRCR = 0x05FA0004u;
    for (;;) {
    }
}

uint32_t board_boots(void)
{
    return lasting.boots;
}

uint32_t board_stack_used(void)
{
    const volatile uint32_t *word = stack_bottom;
    while (word < stack_top && *word == STACK_PAINT) {
        word++;
    }
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)word);
}
