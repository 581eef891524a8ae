/* The serial line as the program sees it; the board's interrupts fill and empty its queues. */
#ifndef AI_LINK_H
#define AI_LINK_H

#include <stdbool.h>
#include <stdint.h>

/* For the main loop. */
bool link_receive(uint8_t *byte);
void link_send(uint8_t byte); /* waits while the queue is full */
void link_flush(void);        /* starts sending what link_send has queued */
void link_drain(void);        /* waits until all is sent */

/* For the board. */
bool link_on_byte(uint8_t byte);    /* false: no room for one more, so mask the receive interrupt */
bool link_next_byte(uint8_t *byte); /* false: nothing to send */
bool link_has_input(void);
bool link_can_queue(void);
bool link_all_taken(void);
void link_on_overrun(void);
uint32_t link_overruns(void);

#endif
