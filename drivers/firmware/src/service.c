#include "service.h"

#include <string.h>

#include "board.h"
#include "frame.h"
#include "link.h"
#include "model.h"
#include "placed.h"

enum { TEXT_LIMIT = 120 };

#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define HELLO_FIXED_BYTES 16u
#define RESULT_BYTES (AI_RESULT_HEADER_BYTES + AI_MAX_SAMPLES * AI_OUTPUT_BYTES)
#define ANSWER_BYTES                                                                             \
    MAX(MAX(RESULT_BYTES, HELLO_FIXED_BYTES + AI_IDENTITY_BYTES), 6u + TEXT_LIMIT)

PLACED(".request") static uint8_t request_body[AI_REQUEST_BYTES];
PLACED(".request") static uint8_t answer_body[AI_HEADER_BYTES + ANSWER_BYTES + AI_CRC_BYTES];
static uint8_t *const answer = answer_body + AI_HEADER_BYTES;
static frame_reader reader;

static struct {
    uint32_t received, sent, bad_crc, malformed, inferences, errors;
} counts;

static void reply(uint8_t type, uint16_t sequence, size_t payload_bytes)
{
    frame_begin(answer_body, type, sequence);
    counts.sent++;
    frame_send(answer_body, AI_HEADER_BYTES + payload_bytes, link_send);
    link_flush();
}

static size_t put_text(uint8_t *to, const char *text)
{
    size_t length = strlen(text);
    length = length < TEXT_LIMIT ? length : TEXT_LIMIT;
    memcpy(to, text, length);
    return length;
}

static void reply_error(uint16_t code, uint32_t detail, const char *text)
{
    counts.errors++;
    put_u16(answer, code);
    put_u32(answer + 2, detail);
    reply(AI_ERROR, reader.sequence, 6 + put_text(answer + 6, text));
}

static void reply_bad_length(size_t expected)
{
    reply_error(AI_ERR_BAD_LENGTH, (uint32_t)expected, "payload of a wrong length");
}

static void log_text(uint8_t level, const char *text)
{
    answer[0] = level;
    reply(AI_LOG, 0, 1 + put_text(answer + 1, text));
}

static void hello(uint16_t sequence)
{
    answer[0] = AI_PROTOCOL_VERSION;
    answer[1] = AI_FRAMES_IN_FLIGHT;
    put_u16(answer + 2, AI_MAX_SAMPLES);
    put_u32(answer + 4, board_boots());
    put_u32(answer + 8, AI_REQUEST_BYTES);
    put_u32(answer + 12, board_tick_hz());
    memcpy(answer + HELLO_FIXED_BYTES, model_identity, sizeof model_identity);
    reply(AI_HELLO_REPLY, sequence, HELLO_FIXED_BYTES + sizeof model_identity);
}

static void infer(void)
{
    if (reader.payload_bytes < 4) {
        reply_bad_length(4);
        return;
    }
    uint16_t samples = get_u16(reader.payload);
    if (samples == 0 || samples > AI_MAX_SAMPLES) {
        reply_error(AI_ERR_TOO_MANY, AI_MAX_SAMPLES, "count of samples out of range");
        return;
    }
    if (reader.payload_bytes != 4 + samples * (size_t)AI_INPUT_BYTES) {
        reply_bad_length(4 + samples * (size_t)AI_INPUT_BYTES);
        return;
    }
    uint32_t start = board_ticks();
    for (size_t i = 0; i < samples; i++) {
        model_run(reader.payload + 4 + i * AI_INPUT_BYTES, answer + AI_RESULT_HEADER_BYTES + i * AI_OUTPUT_BYTES);
        board_feed_watchdog();
    }
    put_u16(answer, samples);
    put_u16(answer + 2, 0);
    put_u32(answer + 4, board_ticks() - start);
    counts.inferences += samples;
    reply(AI_RESULT, reader.sequence, AI_RESULT_HEADER_BYTES + samples * (size_t)AI_OUTPUT_BYTES);
}

static void ping(void)
{
    if (reader.payload_bytes > AI_PING_BYTES) {
        reply_bad_length(AI_PING_BYTES);
        return;
    }
    memcpy(answer, reader.payload, reader.payload_bytes);
    reply(AI_PONG, reader.sequence, reader.payload_bytes);
}

static void stats(void)
{
    const uint32_t values[] = {
        counts.received,   counts.sent,   counts.bad_crc,
        counts.malformed,  link_overruns(), board_boots(),
        board_stack_used(), counts.inferences, counts.errors,
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        put_u32(answer + 4 * i, values[i]);
    }
    reply(AI_STATS_REPLY, reader.sequence, sizeof values);
}

static void reset(void)
{
    if (reader.payload_bytes != 4) {
        reply_bad_length(4);
    } else if (get_u32(reader.payload) != AI_RESET_MAGIC) {
        reply_error(AI_ERR_BAD_MAGIC, 0, "no RESET without its magic number");
    } else {
        link_drain();
        board_reset();
    }
}

static void handle(void)
{
    bool bare = reader.type == AI_HELLO || reader.type == AI_STATS;
    if (bare && reader.payload_bytes != 0) {
        reply_bad_length(0);
        return;
    }
    switch (reader.type) {
    case AI_HELLO: hello(reader.sequence); break;
    case AI_INFER: infer(); break;
    case AI_PING: ping(); break;
    case AI_STATS: stats(); break;
    case AI_RESET: reset(); break;
    default: reply_error(AI_ERR_BAD_TYPE, reader.type, "unknown type of frame"); break;
    }
}

void service_byte(uint8_t byte)
{
    switch (frame_feed(&reader, byte)) {
    case FRAME_READY:
        counts.received++;
        handle();
        break;
    case FRAME_MALFORMED: counts.malformed++; break;
    case FRAME_BAD_CRC: counts.bad_crc++; break;
    case FRAME_NONE: break;
    }
}

void service_start(void)
{
    frame_reader_init(&reader, request_body, sizeof request_body);
    hello(0);
    char text[TEXT_LIMIT + 1];
    if (board_fault_text(text, sizeof text) > 0) {
        log_text(AI_LOG_ERROR, text);
    }
    const char *cause = board_reset_cause();
    if (cause != NULL) {
        log_text(AI_LOG_WARNING, cause);
    }
}
