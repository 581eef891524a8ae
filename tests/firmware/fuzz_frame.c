/* libFuzzer target: no input makes the parser read or write outside its body, and what it sends
 * it reads back. make fuzz runs it.
 */
#include <stdlib.h>
#include <string.h>

#include "frame.h"

static frame_reader reader;
static int ready;

static void feed(uint8_t byte)
{
    ready += frame_feed(&reader, byte) == FRAME_READY;
}

static void read_anything(const uint8_t *data, size_t size, size_t capacity)
{
    uint8_t *body = malloc(capacity);
    volatile uint8_t sum = 0;
    frame_reader_init(&reader, body, capacity);
    for (size_t i = 0; i < size; i++) {
        if (frame_feed(&reader, data[i]) != FRAME_READY) {
            continue;
        }
        for (size_t at = 0; at < reader.payload_bytes; at++) {
            sum = (uint8_t)(sum + reader.payload[at]);
        }
    }
    free(body);
}

static void round_trip(const uint8_t *data, size_t size)
{
    size_t whole = AI_HEADER_BYTES + size + AI_CRC_BYTES;
    uint8_t *sent = malloc(whole), *body = malloc(whole);
    frame_begin(sent, AI_PING, 7);
    memcpy(sent + AI_HEADER_BYTES, data, size);
    frame_reader_init(&reader, body, whole);
    ready = 0;
    frame_send(sent, AI_HEADER_BYTES + size, feed);
    if (ready != 1 || reader.payload_bytes != size || memcmp(reader.payload, data, size) != 0) {
        abort();
    }
    free(sent);
    free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0) {
        read_anything(data + 1, size - 1, data[0]);
        round_trip(data + 1, size - 1);
    }
    return 0;
}
