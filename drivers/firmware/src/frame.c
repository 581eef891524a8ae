#include "frame.h"

uint16_t get_u16(const uint8_t *from)
{
    return (uint16_t)(from[0] | (from[1] << 8));
}

uint32_t get_u32(const uint8_t *from)
{
    return get_u16(from) | ((uint32_t)get_u16(from + 2) << 16);
}

void put_u16(uint8_t *to, uint16_t value)
{
    to[0] = (uint8_t)(value & 0xFFu);
    to[1] = (uint8_t)(value >> 8);
}

void put_u32(uint8_t *to, uint32_t value)
{
    put_u16(to, (uint16_t)(value & 0xFFFFu));
    put_u16(to + 2, (uint16_t)(value >> 16));
}

/* Half a byte at a time: 64 bytes of table instead of 1 kB. */
uint32_t frame_crc(const uint8_t *data, size_t size)
{
    static const uint32_t table[16] = {
        0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u,
        0x4DB26158u, 0x5005713Cu, 0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu,
        0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu,
    };
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        crc = (crc >> 4) ^ table[crc & 15u];
        crc = (crc >> 4) ^ table[crc & 15u];
    }
    return ~crc;
}

static void restart(frame_reader *reader)
{
    reader->size = 0;
    reader->left = 0;
    reader->zero_pending = false;
    reader->started = false;
    reader->spoiled = false;
}

void frame_reader_init(frame_reader *reader, uint8_t *body, size_t capacity)
{
    *reader = (frame_reader){.body = body, .capacity = capacity};
}

static void append(frame_reader *reader, uint8_t byte)
{
    if (reader->size < reader->capacity) {
        reader->body[reader->size++] = byte;
    } else {
        reader->spoiled = true;
    }
}

static frame_event check(frame_reader *reader)
{
    const uint8_t *body = reader->body;
    size_t size = reader->size;
    bool whole = !reader->spoiled && reader->left == 0;

    restart(reader);
    if (!whole || size < AI_HEADER_BYTES + AI_CRC_BYTES) {
        return FRAME_MALFORMED;
    }
    size -= AI_CRC_BYTES;
    if (frame_crc(body, size) != get_u32(body + size)) {
        return FRAME_BAD_CRC;
    }
    if (body[0] != AI_FRAME_VERSION) {
        return FRAME_MALFORMED;
    }
    reader->type = body[1];
    reader->sequence = get_u16(body + 2);
    reader->payload = body + AI_HEADER_BYTES;
    reader->payload_bytes = size - AI_HEADER_BYTES;
    return FRAME_READY;
}

frame_event frame_feed(frame_reader *reader, uint8_t byte)
{
    if (byte == 0) {
        return reader->started ? check(reader) : FRAME_NONE;
    }
    reader->started = true;
    if (reader->left > 0) {
        append(reader, byte);
        reader->left--;
        return FRAME_NONE;
    }
    if (reader->zero_pending) {
        append(reader, 0);
    }
    reader->left = (uint8_t)(byte - 1);
    reader->zero_pending = byte != 0xFF;
    return FRAME_NONE;
}

void frame_begin(uint8_t *body, uint8_t type, uint16_t sequence)
{
    body[0] = AI_FRAME_VERSION;
    body[1] = type;
    put_u16(body + 2, sequence);
}

static size_t run_without_zero(const uint8_t *from, size_t limit)
{
    size_t length = 0;
    while (length < limit && length < 254 && from[length] != 0) {
        length++;
    }
    return length;
}

void frame_send(uint8_t *body, size_t size, frame_put put)
{
    put_u32(body + size, frame_crc(body, size));
    size += AI_CRC_BYTES;
    put(0);
    for (size_t at = 0; at <= size;) {
        size_t run = run_without_zero(body + at, size - at);
        put((uint8_t)(run + 1));
        for (size_t i = 0; i < run; i++) {
            put(body[at + i]);
        }
        at += run;
        if (run == 254 && at == size) {
            break; /* a full block at the end stands for no zero */
        }
        if (run < 254) {
            at++; /* the zero that the code byte stands for, or the end */
        }
    }
    put(0);
}
