// Pseudo terminals: data on its way in both directions and a line that is not finished, packet mode, a slave without its master, a
// master that nobody has opened the other end of. With "stopped" also output that is stopped, by tcflow(3) and by ^S, with data
// before the stop: it goes on by the other call, and by ^Q.
#include "test.h"
#include <sys/ioctl.h>
#include <termios.h>

enum { TALKING, PACKETS, BY_CALL, BY_KEY, MANY };
static int masters[MANY], slaves[MANY], alone, hung_up, many = BY_CALL;

static int waiting(int fd) {
  int bytes = -1;
  ioctl(fd, FIONREAD, &bytes);
  return bytes;
}

static void expect_read(int fd, const char *wanted) {
  char text[64] = "";
  ssize_t got = WITHIN(5000, waiting(fd) > 0) ? read(fd, text, strlen(wanted)) : -1;
  EXPECT(got == (ssize_t)strlen(wanted) && memcmp(text, wanted, strlen(wanted)) == 0, "read %zd: %s, wanted %s", got, text, wanted);
}

static bool takes_output(int i) {
  fcntl(slaves[i], F_SETFL, O_NONBLOCK);
  bool taken = write(slaves[i], "!", 1) == 1;
  fcntl(slaves[i], F_SETFL, 0);
  return taken;
}

static void check_stopped(void) {
  for (int i = BY_CALL; i < many; i++) {
    EXPECT(!takes_output(i), "terminal %d takes output", i);
    EXPECT_EQ(waiting(masters[i]), 6);
  }
  if (!final_round || many == BY_CALL) return;
  EXPECT_EQ(tcflow(slaves[BY_CALL], TCOON), 0);
  EXPECT_EQ(write(masters[BY_KEY], "\x11", 1), 1);
  for (int i = BY_CALL; i < many; i++) {
    EXPECT(WITHIN(5000, takes_output(i)), "terminal %d stays stopped", i);
    expect_read(masters[i], "before");
  }
}

static void check(void) {
  EXPECT_EQ(waiting(masters[TALKING]), 6);
  EXPECT_EQ(waiting(slaves[TALKING]), 5);
  int locked = 0, packets = 0;
  ioctl(alone, TIOCGPTLCK, &locked);
  EXPECT_EQ(locked, 1);
  ioctl(masters[PACKETS], TIOCGPKT, &packets);
  EXPECT_EQ(packets, 1);
  char byte;
  EXPECT_EQ(read(hung_up, &byte, 1), 0);
  EXPECT(write(hung_up, "x", 1) == -1 && errno == EIO, "write to a terminal that is hung up: %m");
  check_stopped();
  if (!final_round) return;
  expect_read(masters[TALKING], "output");
  expect_read(slaves[TALKING], "line\n");
  EXPECT_EQ(write(masters[TALKING], "ished\n", 6), 6);
  expect_read(slaves[TALKING], "unfinished\n");
  char text[16] = "";
  EXPECT_EQ(read(masters[PACKETS], text, sizeof text), 7);
  EXPECT(text[0] == TIOCPKT_DATA && strcmp(text + 1, "packet") == 0, "a packet of kind %d: %s", text[0], text + 1);
}

static void spoil(void) { expect_read(masters[TALKING], "output"); }

static void make(int i) {
  masters[i] = (int)MUST(posix_openpt(O_RDWR | O_NOCTTY));
  MUST(unlockpt(masters[i]));
  slaves[i] = (int)MUST(ioctl(masters[i], TIOCGPTPEER, O_RDWR | O_NOCTTY));
  struct termios settings;
  MUST(tcgetattr(slaves[i], &settings));
  settings.c_lflag &= ~(tcflag_t)ECHO;
  MUST(tcsetattr(slaves[i], TCSANOW, &settings));
}

int main(int argc, char **argv) {
  begin();
  tamper = spoil;
  if (argc > 1 && strcmp(argv[1], "stopped") == 0) many = MANY;
  for (int i = 0; i < many; i++) make(i);
  MUST(write(slaves[TALKING], "output", 6));
  MUST(write(masters[TALKING], "line\nunfin", 10));
  int on = 1;
  MUST(ioctl(masters[PACKETS], TIOCPKT, &on));
  MUST(write(slaves[PACKETS], "packet", 6));
  if (many > BY_CALL) {
    for (int i = BY_CALL; i < many; i++) MUST(write(slaves[i], "before", 6));
    MUST(tcflow(slaves[BY_CALL], TCOOFF));
    MUST(write(masters[BY_KEY], "\x13", 1));
    struct pollfd output = {slaves[BY_KEY], POLLOUT, 0};
    MUST(WITHIN(5000, poll(&output, 1, 0) == 0) ? 0 : -1);
  }
  int lost = (int)MUST(posix_openpt(O_RDWR | O_NOCTTY));
  MUST(unlockpt(lost));
  hung_up = (int)MUST(ioctl(lost, TIOCGPTPEER, O_RDWR | O_NOCTTY));
  close(lost);
  alone = (int)MUST(posix_openpt(O_RDWR | O_NOCTTY));
  serve(check);
}
