// A network namespace of the program's own and a second one of its child, with a pair of devices between them: addresses,
// routes, rules and settings, told by the system's own tools, and a packet that goes across.
#include "test.h"
#include <arpa/inet.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>

static char told[2][65536];
static int receiver;
static pid_t child;

// What the tools tell of the namespace that this process is in.
static void look(char *into, size_t size) {
  FILE *tools = popen("ip -o addr | sed 's/ tentative//'; ip route show table all | sort; ip rule; "
                      "cat /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/unix/max_dgram_qlen",
                      "r");
  if (tools == NULL) MUST(-1);
  size_t length = fread(into, 1, size - 1, tools);
  into[length] = 0;
  pclose(tools);
}

// Addresses are used at once, so that nothing changes while the tools look.
#define QUIET "for i in all default; do echo 0 > /proc/sys/net/ipv6/conf/$i/accept_dad; done; "

static void run(const char *command) {
  EXPECT(system(command) == 0, "set-up: %s", command);
}

// Tells the first line that differs.
static void expect_same(const char *who) {
  look(told[1], sizeof told[1]);
  char *before = told[0], *now = told[1];
  while (*before != 0 && *before == *now) before++, now++;
  EXPECT(*before == *now, "%s sees other things: '%.*s', and before '%.*s'", who, (int)strcspn(now, "\n"), now,
         (int)strcspn(before, "\n"), before);
}

static void child_check(void) {
  expect_same("the child");
  char text[32] = "";
  ssize_t length = -1;
  WITHIN(3000, (length = recv(receiver, text, sizeof text, MSG_DONTWAIT)) > 0);
  EXPECT(length == 7 && strcmp(text, "across") == 0, "received %zd bytes: %s", length, text);
}

static void child_setup(void) {
  char move[64];
  MUST(unshare(CLONE_NEWNET));
  run(QUIET);
  // The parent's namespace is still in its /proc.
  snprintf(move, sizeof move, "nsenter -t %d -n ip link set b0 netns %d", getppid(), getpid());
  run(move);
  run("ip link set lo up && ip link set b0 up && ip addr add 10.78.0.2/24 dev b0 && echo 99 > /proc/sys/net/unix/max_dgram_qlen");
  receiver = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(7878)};
  MUST(bind(receiver, (void *)&any, sizeof any));
  sleep_ms(300);
  look(told[0], sizeof told[0]);
}

static void check(void) {
  expect_same("the parent");
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7878)};
  inet_pton(AF_INET, "10.78.0.2", &to.sin_addr);
  int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  EXPECT(sendto(fd, "across", 7, 0, (void *)&to, sizeof to) == 7, "sendto: %m");
  close(fd);
  ask_child(child);
}

static void change(void) { run("ip addr del 10.78.0.1/24 dev a0"); }

int main(void) {
  begin();
  MUST(unshare(CLONE_NEWNET));
  run(QUIET "ip link set lo up && ip link add a0 type veth peer name b0 && ip addr add 10.78.0.1/24 dev a0 && ip link set a0 up");
  run("ip route add 10.79.0.0/16 via 10.78.0.2 table 77 && "
      "ip rule add from 10.80.0.1 table 77 prio 300 && echo 2 > /proc/sys/net/ipv4/conf/a0/rp_filter");
  child = start_child(child_setup, child_check);
  look(told[0], sizeof told[0]);
  tamper = change;
  serve(check);
}
