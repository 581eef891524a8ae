/* What a board has to offer. boards/NAME.c brings the line, the watchdog and the clocks;
 * src/cortex_m4.c the rest, for every Cortex-M4. boards/host.c is all of it on a computer.
 */
#ifndef AI_BOARD_H
#define AI_BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* boards/NAME.c */
void board_start(void); /* clocks, the line with its interrupts, the watchdog */
void board_resume_receive(void);
void board_start_transmit(void);
void board_feed_watchdog(void);
uint32_t board_tick_hz(void);
const char *board_reset_cause(void); /* NULL: an ordinary one */

/* src/cortex_m4.c */
void board_sleep_unless(bool (*ready)(void)); /* until an interrupt */
uint32_t board_ticks(void);
_Noreturn void board_reset(void);
uint32_t board_boots(void);
uint32_t board_stack_used(void);          /* most bytes of stack ever in use */
size_t board_fault_text(char *to, size_t room); /* of the boot before; 0: there was none */

#endif
