/* STM32F405 (RM0090): USART1 on PA9 and PA10, the pins of its ROM boot loader.
 *
 * QEMU's netduinoplus2 is this part without a clock tree, pins and watchdog: their registers read
 * as zero. No wait for them is endless.
 */
#include "cortex_m4.h"

#define UART_IRQ 37
#define UART_STATUS REGISTER(0x40011000u)
#define UART_CR1 REGISTER(0x4001100Cu)
#define USART_DR REGISTER(0x40011004u)
#define UART_OUT USART_DR /* both ways */
#include "stm32.h"

#ifndef AI_HSE_HZ
#define AI_HSE_HZ 0u /* the board's crystal in whole MHz; 0: the internal 16 MHz oscillator */
#endif

#define RCC_CR REGISTER(0x40023800u)
#define RCC_PLLCFGR REGISTER(0x40023804u)
#define RCC_CFGR REGISTER(0x40023808u)
#define RCC_AHB1ENR REGISTER(0x40023830u)
#define RCC_APB1ENR REGISTER(0x40023840u)
#define RCC_APB2ENR REGISTER(0x40023844u)
#define RCC_CSR REGISTER(0x40023874u)
#define FLASH_ACR REGISTER(0x40023C00u)
#define GPIOA_MODER REGISTER(0x40020000u)
#define GPIOA_PUPDR REGISTER(0x4002000Cu)
#define GPIOA_AFRH REGISTER(0x40020024u)
#define USART_BRR REGISTER(0x40011008u)

enum {
    CR1_ON = (1 << 13) | (1 << 3) | (1 << 2), /* UE, TE, RE */
    HSI_HZ = 16000000,
    FULL_HZ = 168000000,
};

static uint32_t core_hz = HSI_HZ;
static uint32_t usart_hz = HSI_HZ;

/* 168 MHz from the PLL; if an oscillator does not start, the 16 MHz of the reset state stay. */
static void start_clocks(void)
{
    const uint32_t source_mhz = (AI_HSE_HZ ? AI_HSE_HZ : HSI_HZ) / 1000000u;
    RCC_APB1ENR |= 1u << 28; /* PWR: voltage scale 1 is its reset state */
    if (AI_HSE_HZ) {
        RCC_CR |= 1u << 16;
        if (!wait_for(&RCC_CR, 1u << 17, 1u << 17)) {
            return;
        }
    }
    /* source / MHz * 336 / 2 */
    RCC_PLLCFGR = source_mhz | (336u << 6) | (AI_HSE_HZ ? 1u << 22 : 0u) | (7u << 24);
    RCC_CR |= 1u << 24;
    if (!wait_for(&RCC_CR, 1u << 25, 1u << 25)) {
        return;
    }
    FLASH_ACR = 5u | (7u << 8); /* 5 wait states, prefetch, caches */
    RCC_CFGR = (5u << 10) | (4u << 13); /* APB1 at a quarter, APB2 at half */
    RCC_CFGR |= 2u;
    if (wait_for(&RCC_CFGR, 3u << 2, 2u << 2)) {
        core_hz = FULL_HZ;
        usart_hz = FULL_HZ / 2;
    }
}

static void start_usart(void)
{
    RCC_AHB1ENR |= 1u << 0;
    RCC_APB2ENR |= 1u << 4;
    GPIOA_AFRH = (GPIOA_AFRH & ~0xFF0u) | 0x770u;
    GPIOA_PUPDR = (GPIOA_PUPDR & ~(0xFu << 18)) | (0x5u << 18);
    GPIOA_MODER = (GPIOA_MODER & ~(0xFu << 18)) | (0xAu << 18);
    USART_BRR = (usart_hz + AI_BAUD / 2u) / AI_BAUD;
    UART_CR1 = CR1_ON | CR1_RXNEIE;
    interrupt_enable(UART_IRQ);
}

void board_start(void)
{
    bool emulated = RCC_CR == 0; /* silicon cannot run with all oscillators off */
    if (emulated) {
        core_hz = FULL_HZ;
        usart_hz = FULL_HZ / 2;
    } else {
        reset_flags = RCC_CSR;
        RCC_CSR |= 1u << 24;
        start_clocks();
    }
    start_usart();
    start_watchdog();
}

static void receive(uint32_t status)
{
    if (status & STATUS_ORE) {
        link_on_overrun();
    }
    if (!link_on_byte((uint8_t)USART_DR)) {
        UART_CR1 &= ~(uint32_t)CR1_RXNEIE;
    }
}

uint32_t board_tick_hz(void)
{
    return core_hz;
}
