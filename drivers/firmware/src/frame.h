/* Frames on the line: 0x00 COBS(version, type, sequence, payload, CRC-32) 0x00.
 *
 * Portable: it knows no board, allocates nothing and never writes outside the body it was given.
 */
#ifndef AI_FRAME_H
#define AI_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

/* Zeros, code bytes and all, a body of n bytes takes at most this many on the line. */
#define FRAME_LINE_BYTES(n) ((n) + (n) / 254u + 3u)

typedef enum {
    FRAME_NONE,      /* more bytes are needed */
    FRAME_READY,     /* a whole frame: see type, sequence, payload, payload_bytes */
    FRAME_MALFORMED, /* too long, too short, bad COBS or another version */
    FRAME_BAD_CRC,
} frame_event;

typedef struct {
    uint8_t *body;
    size_t capacity;
    size_t size;
    uint8_t left;      /* bytes until the next code byte */
    bool zero_pending; /* the block that ends stands for a zero, unless the frame ends too */
    bool started;
    bool spoiled;
    /* of the frame that is ready, until the next byte is fed */
    uint8_t type;
    uint16_t sequence;
    const uint8_t *payload;
    size_t payload_bytes;
} frame_reader;

void frame_reader_init(frame_reader *reader, uint8_t *body, size_t capacity);

frame_event frame_feed(frame_reader *reader, uint8_t byte);

/* A body to be sent: the header; the payload follows at body + AI_HEADER_BYTES. */
void frame_begin(uint8_t *body, uint8_t type, uint16_t sequence);

typedef void (*frame_put)(uint8_t byte);

/* Send header and payload, size bytes together; body has AI_CRC_BYTES more for the CRC. */
void frame_send(uint8_t *body, size_t size, frame_put put);

uint32_t frame_crc(const uint8_t *data, size_t size);

uint16_t get_u16(const uint8_t *from);
uint32_t get_u32(const uint8_t *from);
void put_u16(uint8_t *to, uint16_t value);
void put_u32(uint8_t *to, uint32_t value);

#endif
