/* Arm MPS2 with the AN386 image (Cortex-M4 at 25 MHz): CMSDK's UART 0 and watchdog. */
#include "board.h"
#include "cortex_m4.h"
#include "link.h"

#ifndef AI_BAUD
#define AI_BAUD 921600u
#endif

#define UART_DATA REGISTER(0x40004000u)
#define UART_STATE REGISTER(0x40004004u)
#define UART_CTRL REGISTER(0x40004008u)
#define UART_INT REGISTER(0x4000400Cu)
#define UART_BAUDDIV REGISTER(0x40004010u)
#define WATCHDOG_LOAD REGISTER(0x40008000u)
#define WATCHDOG_CTRL REGISTER(0x40008008u)
#define WATCHDOG_INTCLR REGISTER(0x4000800Cu)
#define WATCHDOG_LOCK REGISTER(0x40008C00u)

enum {
    RECEIVE_IRQ = 0,
    TRANSMIT_IRQ = 1,
    STATE_SENDING = 1 << 0,
    STATE_RECEIVED = 1 << 1,
    STATE_OVERRUN = 1 << 3,
    CTRL_ON = 3,
    CTRL_TRANSMIT_INTERRUPT = 1 << 2,
    CTRL_RECEIVE_INTERRUPT = 1 << 3,
    INT_TRANSMIT = 1,
    INT_RECEIVE = 2,
    CORE_HZ = 25000000,
};

static void receive_handler(void);
static void transmit_handler(void);
BOARD_VECTORS board_vectors[] = {
    [RECEIVE_IRQ] = receive_handler,
    [TRANSMIT_IRQ] = transmit_handler,
};

void board_start(void)
{
    UART_BAUDDIV = CORE_HZ / AI_BAUD;
    UART_CTRL = CTRL_ON | CTRL_TRANSMIT_INTERRUPT | CTRL_RECEIVE_INTERRUPT;
    interrupt_enable(RECEIVE_IRQ);
    interrupt_enable(TRANSMIT_IRQ);
    WATCHDOG_LOCK = 0x1ACCE551u;
    WATCHDOG_LOAD = 8u * CORE_HZ;
    WATCHDOG_CTRL = 3; /* count, and reset when it runs out a second time */
}

static void receive_handler(void)
{
    UART_INT = INT_RECEIVE;
    if (UART_STATE & STATE_OVERRUN) {
        UART_STATE = STATE_OVERRUN;
        link_on_overrun();
    }
    while ((UART_CTRL & CTRL_RECEIVE_INTERRUPT) && (UART_STATE & STATE_RECEIVED)) {
        if (!link_on_byte((uint8_t)UART_DATA)) {
            UART_CTRL &= ~(uint32_t)CTRL_RECEIVE_INTERRUPT;
        }
    }
}

static void transmit_handler(void)
{
    uint8_t byte;
    UART_INT = INT_TRANSMIT;
    while (!(UART_STATE & STATE_SENDING) && link_next_byte(&byte)) {
        UART_DATA = byte;
    }
}

void board_resume_receive(void)
{
    __asm volatile("cpsid i" ::: "memory");
    UART_CTRL |= CTRL_RECEIVE_INTERRUPT;
    __asm volatile("cpsie i" ::: "memory");
    interrupt_raise(RECEIVE_IRQ); /* for a byte that came while it was masked */
}

void board_start_transmit(void)
{
    interrupt_raise(TRANSMIT_IRQ);
}

void board_feed_watchdog(void)
{
    WATCHDOG_INTCLR = 1;
}

uint32_t board_tick_hz(void)
{
    return CORE_HZ;
}

const char *board_reset_cause(void)
{
    return NULL;
}
