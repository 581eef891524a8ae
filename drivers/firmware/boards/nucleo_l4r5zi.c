/* NUCLEO-L4R5ZI (RM0432, UM2179): LPUART1 on PG7 and PG8, which its ST-LINK makes a USB port of.
 *
 * QEMU has no model of it, and no silicon was at hand. No wait for a register is endless.
 */
#include "cortex_m4.h"

#define UART_IRQ 70
#define UART_STATUS REGISTER(0x4000801Cu)
#define UART_CR1 REGISTER(0x40008000u)
#define UART_OUT REGISTER(0x40008028u)
#include "stm32.h"

#define RCC_CR REGISTER(0x40021000u)
#define RCC_CFGR REGISTER(0x40021008u)
#define RCC_PLLCFGR REGISTER(0x4002100Cu)
#define RCC_AHB2ENR REGISTER(0x4002104Cu)
#define RCC_APB1ENR1 REGISTER(0x40021058u)
#define RCC_APB1ENR2 REGISTER(0x4002105Cu)
#define RCC_CSR REGISTER(0x40021094u)
#define FLASH_ACR REGISTER(0x40022000u)
#define PWR_CR2 REGISTER(0x40007004u)
#define PWR_CR5 REGISTER(0x40007080u)
#define GPIOG_MODER REGISTER(0x48001800u)
#define GPIOG_PUPDR REGISTER(0x4800180Cu)
#define GPIOG_AFRL REGISTER(0x48001820u)
#define GPIOG_AFRH REGISTER(0x48001824u)
#define LPUART_BRR REGISTER(0x4000800Cu)
#define LPUART_ICR REGISTER(0x40008020u)
#define LPUART_RDR REGISTER(0x40008024u)

enum {
    CR1_ON = (1 << 3) | (1 << 2) | (1 << 0), /* TE, RE, UE */
    MSI_HZ = 4000000,
    FULL_HZ = 120000000,
};

static uint32_t core_hz = MSI_HZ;

/* 120 MHz from the internal 16 MHz; if that does not start, the 4 MHz of the reset state stay. */
static void start_clocks(void)
{
    RCC_CR |= 1u << 8; /* HSI16 */
    if (!wait_for(&RCC_CR, 1u << 10, 1u << 10)) {
        return;
    }
    PWR_CR5 &= ~(1u << 8); /* boost, which more than 80 MHz take */
    RCC_PLLCFGR = 2u | (1u << 4) | (30u << 8) | (1u << 24); /* HSI16 / 2 * 30 / 2 */
    RCC_CR |= 1u << 24;
    if (!wait_for(&RCC_CR, 1u << 25, 1u << 25)) {
        return;
    }
    FLASH_ACR = 5u | (7u << 8); /* 5 wait states, prefetch, caches */
    if (!wait_for(&FLASH_ACR, 0xFu, 5u)) {
        return;
    }
    RCC_CFGR = (8u << 4) | 3u; /* by way of half the speed, for a microsecond and more */
    if (!wait_for(&RCC_CFGR, 3u << 2, 3u << 2)) {
        RCC_CFGR = 0;
        return;
    }
    for (volatile uint32_t pause = 100; pause > 0; pause--) {
    }
    RCC_CFGR = 3u;
    core_hz = FULL_HZ;
}

static void start_uart(void)
{
    RCC_AHB2ENR |= 1u << 6;
    RCC_APB1ENR2 |= 1u << 0;
    PWR_CR2 |= 1u << 9; /* port G has a supply of its own */
    GPIOG_AFRL = (GPIOG_AFRL & ~(0xFu << 28)) | (8u << 28);
    GPIOG_AFRH = (GPIOG_AFRH & ~0xFu) | 8u;
    GPIOG_PUPDR = (GPIOG_PUPDR & ~(0xFu << 14)) | (0x5u << 14);
    GPIOG_MODER = (GPIOG_MODER & ~(0xFu << 14)) | (0xAu << 14);
    LPUART_BRR = (uint32_t)((256ull * core_hz + AI_BAUD / 2u) / AI_BAUD);
    UART_CR1 = CR1_ON | CR1_RXNEIE;
    interrupt_enable(UART_IRQ);
}

void board_start(void)
{
    RCC_APB1ENR1 |= 1u << 28; /* PWR */
    reset_flags = RCC_CSR;
    RCC_CSR |= 1u << 23;
    start_clocks();
    start_uart();
    start_watchdog();
}

static void receive(uint32_t status)
{
    if (status & STATUS_ORE) {
        LPUART_ICR = STATUS_ORE;
        link_on_overrun();
    }
    if ((status & STATUS_RXNE) && !link_on_byte((uint8_t)LPUART_RDR)) {
        UART_CR1 &= ~(uint32_t)CR1_RXNEIE;
    }
}

uint32_t board_tick_hz(void)
{
    return core_hz;
}
