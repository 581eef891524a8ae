/* STM32F405 (RM0090): USART1 on PA9 and PA10, the pins of its ROM boot loader.
 *
 * QEMU's netduinoplus2 is this part without a clock tree, pins and watchdog: their registers read
 * as zero. No wait for them is endless.
 */
#include "board.h"
#include "cortex_m4.h"
#include "link.h"

#ifndef AI_BAUD
#define AI_BAUD 921600u
#endif
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
#define USART_SR REGISTER(0x40011000u)
#define USART_DR REGISTER(0x40011004u)
#define USART_BRR REGISTER(0x40011008u)
#define USART_CR1 REGISTER(0x4001100Cu)
#define IWDG_KR REGISTER(0x40003000u)
#define IWDG_PR REGISTER(0x40003004u)
#define IWDG_RLR REGISTER(0x40003008u)
#define IWDG_SR REGISTER(0x4000300Cu)
#define DBGMCU_APB1_FZ REGISTER(0xE0042008u)

enum {
    USART1_IRQ = 37,
    SR_ORE = 1 << 3,
    SR_RXNE = 1 << 5,
    SR_TXE = 1 << 7,
    CR1_ON = (1 << 13) | (1 << 3) | (1 << 2), /* UE, TE, RE */
    CR1_RXNEIE = 1 << 5,
    CR1_TXEIE = 1 << 7,
    HSI_HZ = 16000000,
    FULL_HZ = 168000000,
    PATIENCE = 1000000,
};

static uint32_t core_hz = HSI_HZ;
static uint32_t usart_hz = HSI_HZ;
static uint32_t reset_flags;

static void usart1_handler(void);
BOARD_VECTORS board_vectors[] = {
    [USART1_IRQ] = usart1_handler,
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
    USART_CR1 = CR1_ON | CR1_RXNEIE;
    interrupt_enable(USART1_IRQ);
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
    if (status & SR_ORE) {
        link_on_overrun();
    }
    if (!link_on_byte((uint8_t)USART_DR)) {
        USART_CR1 &= ~(uint32_t)CR1_RXNEIE;
    }
}

/* QEMU raises no interrupt for TXE but always has it set: one call sends all there. On silicon
 * each call sends what the shifter takes, and the interrupt comes again for more. */
static void transmit(void)
{
    uint8_t byte;
    while (USART_SR & SR_TXE) {
        if (!link_next_byte(&byte)) {
            USART_CR1 &= ~(uint32_t)CR1_TXEIE;
            return;
        }
        USART_DR = byte;
    }
}

static void usart1_handler(void)
{
    uint32_t status = USART_SR;
    uint32_t wanted = USART_CR1;
    if ((wanted & CR1_RXNEIE) && (status & (SR_RXNE | SR_ORE))) {
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
    USART_CR1 |= interrupts;
    __asm volatile("cpsie i" ::: "memory");
}

void board_resume_receive(void)
{
    enable(CR1_RXNEIE);
}

void board_start_transmit(void)
{
    enable(CR1_TXEIE);
    interrupt_raise(USART1_IRQ);
}

void board_feed_watchdog(void)
{
    IWDG_KR = 0xAAAA;
}

uint32_t board_tick_hz(void)
{
    return core_hz;
}

const char *board_reset_cause(void)
{
    return reset_flags & (1u << 29) ? "reset by the watchdog" : NULL;
}
