// A server that sends back whatever it receives, for a peer outside of the process; its port is in the file "port", which the
// peer removes.
#include "inet.h"

static int listener, peers[16], count;

static void serve_peers(void) {
  int peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
  if (peer >= 0 && count < (int)COUNT(peers)) peers[count++] = peer;
  for (int i = 0; i < count; i++) {
    char text[4096];
    ssize_t got = recv(peers[i], text, sizeof text, MSG_DONTWAIT);
    if (got > 0) EXPECT_EQ(send(peers[i], text, (size_t)got, MSG_NOSIGNAL), got);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
      close(peers[i]);
      peers[i--] = peers[--count];
    }
  }
}

static void check(void) { EXPECT_EQ(tcp_state(listener), TCP_LISTEN); }

static void spoil(void) { shutdown(listener, SHUT_RDWR); }

int main(void) {
  begin();
  listener = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
  set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1); // connections that ended linger at the port
  address a = loopback(AF_INET, false, 0);
  MUST(bind(listener, &a.any, size_of(&a)));
  MUST(listen(listener, 16));
  MUST(fcntl(listener, F_SETFL, O_NONBLOCK));
  tell_number("port", port_of(listener));
  tamper = spoil;
  serve_ticking(check, 2, serve_peers);
}
