/* frame.c on its own. "decode N" reads a line's bytes and prints what came of them, with a body of
 * N bytes; "encode" reads a body without its CRC and writes the frame.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

static void put(uint8_t byte)
{
    putchar(byte);
}

static void print_frame(const frame_reader *reader)
{
    printf("%u %u ", reader->type, reader->sequence);
    for (size_t i = 0; i < reader->payload_bytes; i++) {
        printf("%02x", reader->payload[i]);
    }
    putchar('\n');
}

static int decode(size_t capacity)
{
    uint8_t *body = malloc(capacity); /* the sanitizer sees any byte beyond */
    frame_reader reader;
    frame_reader_init(&reader, body, capacity);
    for (int byte; (byte = getchar()) != EOF;) {
        switch (frame_feed(&reader, (uint8_t)byte)) {
        case FRAME_READY: print_frame(&reader); break;
        case FRAME_MALFORMED: puts("malformed"); break;
        case FRAME_BAD_CRC: puts("crc"); break;
        case FRAME_NONE: break;
        }
    }
    free(body);
    return 0;
}

static int encode(void)
{
    static uint8_t input[1 << 16];
    size_t size = fread(input, 1, sizeof input, stdin);
    uint8_t *body = malloc(size + AI_CRC_BYTES);
    memcpy(body, input, size);
    frame_send(body, size, put);
    free(body);
    return 0;
}

int main(int count, char **arguments)
{
    if (count > 2 && strcmp(arguments[1], "decode") == 0) {
        return decode(strtoul(arguments[2], NULL, 10));
    }
    return encode();
}
