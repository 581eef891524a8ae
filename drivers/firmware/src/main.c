#include "board.h"
#include "link.h"
#include "service.h"

int main(void)
{
    board_start();
    service_start();
    for (;;) {
        uint8_t byte;
        board_feed_watchdog();
        if (link_receive(&byte)) {
            service_byte(byte);
        } else {
            board_sleep_unless(link_has_input);
        }
    }
}
