/* What the STM32s' board files share: the UART by interrupts, the watchdog, waits that end.
 *
 * A board's file defines UART_IRQ, UART_STATUS, UART_CR1 and UART_OUT before it includes this, and
 * receive() after. The bits lie at the same places in USART and LPUART.
 */
#ifndef AI_STM32_H
#define AI_STM32_H

#include "board.h"
#include "cortex_m4.h"
#include "link.h"

#ifndef AI_BAUD
#define AI_BAUD 921600u
#endif

#define IWDG_KR REGISTER(0x40003000u)
#define IWDG_PR REGISTER(0x40003004u)
#define IWDG_RLR REGISTER(0x40003008u)
#define IWDG_SR REGISTER(0x4000300Cu)
#define DBGMCU_APB1_FZ REGISTER(0xE0042008u)

enum {
    STATUS_ORE = 1 << 3,
    STATUS_RXNE = 1 << 5,
    STATUS_TXE = 1 << 7,
    CR1_RXNEIE = 1 << 5,
    CR1_TXEIE = 1 << 7,
    PATIENCE = 1000000,
};

static uint32_t reset_flags;

/* Take what has come, as the status says. */
static void receive(uint32_t status);

static void uart_handler(void);
BOARD_VECTORS board_vectors[] = {
    [UART_IRQ] = uart_handler,
};

static bool wait_for(volatile uint32_t *from, uint32_t mask, uint32_t value)
{
    for (uint32_t patience = PATIENCE; patience > 0; patience--) {
        if ((*from & mask) == value) {
            return true;
        }
    }
    return false;
}

/* About 8 s at 32 kHz, more than any one inference should take; stopped while a debugger halts. */
static void start_watchdog(void)
{
    DBGMCU_APB1_FZ |= 1u << 12;
    IWDG_KR = 0xCCCC;
    IWDG_KR = 0x5555;
    IWDG_PR = 6;
    IWDG_RLR = 1000;
    wait_for(&IWDG_SR, 3, 0);
    board_feed_watchdog();
}

/* QEMU raises no interrupt for TXE but always has it set: one call sends all there. On silicon
 * each call sends what the shifter takes, and the interrupt comes again for more. */
static void transmit(void)
{
    uint8_t byte;
    while (UART_STATUS & STATUS_TXE) {
        if (!link_next_byte(&byte)) {
            UART_CR1 &= ~(uint32_t)CR1_TXEIE;
            return;
        }
        UART_OUT = byte;
    }
}

static void uart_handler(void)
{
    uint32_t status = UART_STATUS;
    uint32_t wanted = UART_CR1;
    if ((wanted & CR1_RXNEIE) && (status & (STATUS_RXNE | STATUS_ORE))) {
        receive(status);
    }
    if (wanted & CR1_TXEIE) {
        transmit();
    }
}

/* The handler changes CR1 too. */
static void enable(uint32_t interrupts)
{
    __asm volatile("cpsid i" ::: "memory");
    UART_CR1 |= interrupts;
    __asm volatile("cpsie i" ::: "memory");
}

void board_resume_receive(void)
{
    enable(CR1_RXNEIE);
}

void board_start_transmit(void)
{
    enable(CR1_TXEIE);
    interrupt_raise(UART_IRQ);
}

void board_feed_watchdog(void)
{
    IWDG_KR = 0xAAAA;
}

const char *board_reset_cause(void)
{
    return reset_flags & (1u << 29) ? "reset by the watchdog" : NULL;
}

#endif
