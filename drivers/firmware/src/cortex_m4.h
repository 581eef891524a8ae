/* What a board file shares with src/cortex_m4.c: the core's registers and its interrupts. */
#ifndef AI_CORTEX_M4_H
#define AI_CORTEX_M4_H

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

typedef void (*vector)(void);

/* In the board's file: the handler of each interrupt, by its number. Others lead to a hard fault. */
#define BOARD_VECTORS __attribute__((section(".vectors.board"), used)) const vector

static inline void interrupt_enable(uint32_t number)
{
    REGISTER(0xE000E100u + 4u * (number / 32u)) = 1u << (number % 32u);
}

/* Run the interrupt's handler now, whatever its device says. */
static inline void interrupt_raise(uint32_t number)
{
    REGISTER(0xE000E200u + 4u * (number / 32u)) = 1u << (number % 32u);
}

#endif
