// TCP connections on their way to the end: one side shut down (FIN_WAIT2 and CLOSE_WAIT), with unread data; both shut down behind
// data that the peer does not take (FIN_WAIT1); closed by both; reset by the peer; reading ended; a connection that is not
// answered yet (SYN_SENT).
#include "inet.h"
#include <linux/filter.h>

enum { HALF, STUCK, CLOSED, RESET, DEAF, MANY };
static int pairs[MANY][2];
static int silent, unanswered;
static size_t stuffed;

static void stuff(int fd) {
  char block[1000];
  memset(block, 's', sizeof block);
  ssize_t sent;
  while ((sent = send(fd, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0)
    stuffed += (size_t)sent;
}

static size_t drain(int fd) {
  char block[8192];
  size_t total = 0;
  struct pollfd ready = {.fd = fd, .events = POLLIN};
  while (poll(&ready, 1, 5000) == 1) {
    ssize_t got = recv(fd, block, sizeof block, MSG_DONTWAIT);
    if (got <= 0) break;
    total += (size_t)got;
  }
  return total;
}

static void check(void) {
  char byte;
  EXPECT_EQ(tcp_state(pairs[HALF][0]), TCP_FIN_WAIT2);
  EXPECT_EQ(tcp_state(pairs[HALF][1]), TCP_CLOSE_WAIT);
  EXPECT(send(pairs[HALF][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "shut, it can be written");
  char words[16] = "";
  EXPECT_EQ(recv(pairs[HALF][1], words, sizeof words, MSG_PEEK | MSG_DONTWAIT), 10);
  EXPECT(strcmp(words, "last words") == 0, "the last words are %s", words);
  if (final_round) {
    expect_text(pairs[HALF][1], "last words");
    EXPECT(recv(pairs[HALF][1], &byte, 1, MSG_DONTWAIT) == 0, "no end of file behind the data");
  }
  put_text(pairs[HALF][1], "half");
  expect_text(pairs[HALF][0], "half");

  EXPECT_EQ(tcp_state(pairs[STUCK][0]), TCP_FIN_WAIT1);
  EXPECT_EQ(tcp_state(pairs[STUCK][1]), TCP_ESTABLISHED);
  if (final_round) {
    EXPECT_EQ(drain(pairs[STUCK][1]), stuffed);
    EXPECT(recv(pairs[STUCK][1], &byte, 1, MSG_DONTWAIT) == 0, "no end of file behind what was stuck");
    EXPECT_EQ(tcp_state(pairs[STUCK][1]), TCP_CLOSE_WAIT);
  }

  EXPECT_EQ(tcp_state(pairs[CLOSED][1]), TCP_CLOSE);
  EXPECT(recv(pairs[CLOSED][1], &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1 && byte == 'e', "the unread data is gone");
  EXPECT(send(pairs[CLOSED][1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "closed, it can be written");

  EXPECT_EQ(tcp_state(pairs[RESET][1]), TCP_CLOSE);
  EXPECT(recv(pairs[RESET][1], &byte, 1, MSG_DONTWAIT) == 0, "a reset connection is not at its end");

  EXPECT(recv(pairs[DEAF][0], &byte, 1, MSG_DONTWAIT) == 0, "reading goes on after it was ended");
  put_text(pairs[DEAF][0], "still speaks");
  expect_text(pairs[DEAF][1], "still speaks");

  EXPECT_EQ(tcp_state(unanswered), TCP_SYN_SENT);
  if (final_round) {
    int off = 0;
    setsockopt(silent, SOL_SOCKET, SO_DETACH_FILTER, &off, sizeof off);
    struct pollfd ready = {.fd = unanswered, .events = POLLOUT};
    EXPECT_EQ(poll(&ready, 1, 20000), 1);
    EXPECT_EQ(get_option(unanswered, SOL_SOCKET, SO_ERROR), 0);
    EXPECT_EQ(tcp_state(unanswered), TCP_ESTABLISHED);
  }
}

static void spoil(void) { shutdown(pairs[HALF][1], SHUT_WR); }

int main(void) {
  begin();
  for (int i = 0; i < MANY; i++) {
    int listener = listen_at(i == HALF ? AF_INET6 : AF_INET, false, 5);
    if (i == STUCK) set_option(listener, SOL_SOCKET, SO_RCVBUF, 5000);
    connect_pair(listener, i == HALF ? AF_INET6 : AF_INET, false, pairs[i]);
    close(listener);
  }
  put_text(pairs[HALF][0], "last words");
  MUST(shutdown(pairs[HALF][0], SHUT_WR));
  set_option(pairs[STUCK][0], SOL_SOCKET, SO_SNDBUF, 20000);
  stuff(pairs[STUCK][0]);
  MUST(shutdown(pairs[STUCK][0], SHUT_WR));
  put_text(pairs[CLOSED][0], "end");
  MUST(shutdown(pairs[CLOSED][0], SHUT_WR));
  MUST(WITHIN(5000, tcp_state(pairs[CLOSED][1]) == TCP_CLOSE_WAIT) ? 0 : -1);
  MUST(shutdown(pairs[CLOSED][1], SHUT_WR));
  close(pairs[CLOSED][0]);
  struct linger at_once = {1, 0};
  MUST(setsockopt(pairs[RESET][0], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
  close(pairs[RESET][0]);
  MUST(WITHIN(5000, tcp_state(pairs[RESET][1]) == TCP_CLOSE) ? 0 : -1);
  get_option(pairs[RESET][1], SOL_SOCKET, SO_ERROR); // taken, so that the state alone is left
  MUST(shutdown(pairs[DEAF][0], SHUT_RD));
  MUST(WITHIN(5000, tcp_state(pairs[HALF][0]) == TCP_FIN_WAIT2 && tcp_state(pairs[CLOSED][1]) == TCP_CLOSE) ? 0 : -1);
  // A listener whose filter drops whatever comes.
  silent = listen_at(AF_INET, false, 5);
  struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
  struct sock_fprog program = {1, &drop};
  MUST(setsockopt(silent, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
  unanswered = (int)MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
  address a = loopback(AF_INET, false, port_of(silent));
  EXPECT(connect(unanswered, &a.any, size_of(&a)) == -1 && errno == EINPROGRESS, "connect: %m");
  tamper = spoil;
  serve(check);
}
