#include "link.h"

#include <stdatomic.h>

#include "board.h"
#include "frame.h"
#include "model.h"
#include "placed.h"
#include "ring.h"

enum { TRANSMIT_BYTES = 2048 };

/* Every request that may be in flight fits, so that they arrive while the model computes. */
PLACED(".queue") static uint8_t received[AI_FRAMES_IN_FLIGHT * FRAME_LINE_BYTES(AI_REQUEST_BYTES) + 1u];
static uint8_t outgoing[TRANSMIT_BYTES];
static ring receive_ring = {.data = received, .size = sizeof received};
static ring transmit_ring = {.data = outgoing, .size = sizeof outgoing};
static atomic_bool held; /* the receive interrupt is masked because its ring is full */
static _Atomic uint32_t overruns;

bool link_receive(uint8_t *byte)
{
    if (!ring_take(&receive_ring, byte)) {
        return false;
    }
    if (atomic_load(&held)) {
        atomic_store(&held, false);
        board_resume_receive();
    }
    return true;
}

void link_send(uint8_t byte)
{
    while (!ring_put(&transmit_ring, byte)) {
        board_start_transmit();
        board_sleep_unless(link_can_queue);
    }
}

void link_flush(void)
{
    board_start_transmit();
}

void link_drain(void)
{
    board_start_transmit();
    while (!ring_empty(&transmit_ring)) {
        board_sleep_unless(link_all_taken);
    }
}

bool link_on_byte(uint8_t byte)
{
    if (!ring_put(&receive_ring, byte)) {
        link_on_overrun();
    }
    if (ring_full(&receive_ring)) {
        atomic_store(&held, true);
        return false;
    }
    return true;
}

bool link_next_byte(uint8_t *byte)
{
    return ring_take(&transmit_ring, byte);
}

bool link_has_input(void)
{
    return !ring_empty(&receive_ring);
}

bool link_can_queue(void)
{
    return !ring_full(&transmit_ring);
}

bool link_all_taken(void)
{
    return ring_empty(&transmit_ring);
}

void link_on_overrun(void)
{
    atomic_fetch_add(&overruns, 1);
}

uint32_t link_overruns(void)
{
    return atomic_load(&overruns);
}
