// Hundreds of TCP connections with something to read on every one.
#include "inet.h"

enum { MANY = 300 };
static int pairs[MANY][2];

static void queue(int i) {
  char text[32];
  snprintf(text, sizeof text, "message %d", i);
  put_text(pairs[i][i % 2], text);
}

static void check(void) {
  for (int i = 0; i < MANY; i++) {
    char text[32];
    snprintf(text, sizeof text, "message %d", i);
    expect_text(pairs[i][1 - i % 2], text);
    queue(i);
  }
}

static void spoil(void) { shutdown(pairs[MANY / 2][0], SHUT_RDWR); }

int main(void) {
  begin();
  int listener = listen_at(AF_INET, false, 5);
  for (int i = 0; i < MANY; i++) {
    connect_pair(listener, AF_INET, false, pairs[i]);
    queue(i);
  }
  close(listener);
  tamper = spoil;
  serve(check);
}
