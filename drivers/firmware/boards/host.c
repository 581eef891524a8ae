/* A computer as the board: the line is standard input and output. It runs the same program under
 * the sanitizers, and answers protocol tests without an emulator. A reset starts it anew.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "board.h"
#include "link.h"

static const char BOOTS[] = "AI_BOOTS";
static uint32_t boots;
static bool full;

void board_start(void)
{
    const char *before = getenv(BOOTS);
    boots = before == NULL ? 1u : (uint32_t)strtoul(before, NULL, 10);
}

static void receive(void)
{
    uint8_t byte;
    ssize_t count = read(STDIN_FILENO, &byte, 1);
    if (count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN)) {
        exit(0);
    }
    full = count == 1 && !link_on_byte(byte);
}

void board_sleep_unless(bool (*ready)(void))
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    if (ready() || poll(&input, 1, -1) < 0) {
        return;
    }
    do {
        receive();
    } while (!full && poll(&input, 1, 0) > 0);
}

void board_resume_receive(void)
{
    full = false;
}

static void write_all(const uint8_t *from, size_t size)
{
    while (size > 0) {
        ssize_t count = write(STDOUT_FILENO, from, size);
        if (count < 0 && errno != EINTR) {
            exit(0);
        }
        size_t done = count < 0 ? 0 : (size_t)count;
        from += done;
        size -= done;
    }
}

void board_start_transmit(void)
{
    uint8_t bytes[512];
    size_t size = 0;
    while (link_next_byte(bytes + size)) {
        if (++size == sizeof bytes) {
            write_all(bytes, size);
            size = 0;
        }
    }
    write_all(bytes, size);
}

void board_feed_watchdog(void)
{
}

uint32_t board_tick_hz(void)
{
    return 1000000000u;
}

uint32_t board_ticks(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

_Noreturn void board_reset(void)
{
    char text[12];
    snprintf(text, sizeof text, "%u", boots + 1);
    setenv(BOOTS, text, 1);
    execl("/proc/self/exe", "firmware", (char *)NULL);
    abort();
}

uint32_t board_boots(void)
{
    return boots;
}

uint32_t board_stack_used(void)
{
    return 0;
}

size_t board_fault_text(char *to, size_t room)
{
    (void)to;
    (void)room;
    return 0;
}

const char *board_reset_cause(void)
{
    return NULL;
}
