// Netlink sockets: one with a port of its own, one with groups, one that is connected, one that asks the kernel; with "high"
// also groups above 32 and options of the protocol, which CRIU does not know.
#include "test.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

static int bound, group, high = -1, caller, route, plain;
static unsigned port;

static struct sockaddr_nl name_of(int fd) {
  struct sockaddr_nl name = {0};
  socklen_t length = sizeof name;
  MUST(getsockname(fd, (void *)&name, &length));
  return name;
}

static void set(int fd, int option, int value) { MUST(setsockopt(fd, SOL_NETLINK, option, &value, sizeof value)); }

static int get(int fd, int option) {
  int value = -1;
  socklen_t length = sizeof value;
  getsockopt(fd, SOL_NETLINK, option, &value, &length);
  return value;
}

// Asks for the loopback device; the answer must tell of it.
static void ask(void) {
  struct {
    struct nlmsghdr head;
    struct ifinfomsg body;
  } request = {.head = {sizeof request, RTM_GETLINK, NLM_F_REQUEST, 7, 0}, .body = {.ifi_index = 1}};
  EXPECT(send(route, &request, sizeof request, 0) == sizeof request, "asking: %m");
  static char answer[65536];
  ssize_t got = recv(route, answer, sizeof answer, 0);
  struct nlmsghdr *head = (void *)answer;
  EXPECT(got > 0 && head->nlmsg_type == RTM_NEWLINK && head->nlmsg_seq == 7, "answer of %zd bytes, type %d", got,
         head->nlmsg_type);
}

static void check_high(void) {
  unsigned groups[2] = {0};
  socklen_t length = sizeof groups;
  MUST(getsockopt(high, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &length));
  EXPECT(groups[0] == 1 && groups[1] == 1, "groups above 32: %x %x", groups[0], groups[1]);
  EXPECT(get(high, NETLINK_PKTINFO) == 1 && get(high, NETLINK_NO_ENOBUFS) == 1, "options are lost");
}

static void check(void) {
  EXPECT(name_of(bound).nl_pid == port, "port %u instead of %u", name_of(bound).nl_pid, port);
  EXPECT(name_of(group).nl_groups == 5, "groups %x", name_of(group).nl_groups);
  EXPECT(send(caller, "hello", 6, 0) == 6, "sending to port %u: %m", port);
  char text[16] = "";
  EXPECT(recv(bound, text, sizeof text, MSG_DONTWAIT) == 6 && strcmp(text, "hello") == 0, "received '%s': %m", text);
  ask();
  EXPECT(name_of(plain).nl_pid == 0, "a port that nobody asked for");
  EXPECT((fcntl(plain, F_GETFL) & O_NONBLOCK) != 0, "it is not O_NONBLOCK any more");
  if (high >= 0) check_high();
}

static void leave_group(void) { set(group, NETLINK_DROP_MEMBERSHIP, 3); }

int main(int argc, char **argv) {
  begin();
  port = 0x52500000u + (unsigned)getpid();
  struct sockaddr_nl own = {.nl_family = AF_NETLINK, .nl_pid = port};
  bound = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK));
  MUST(bind(bound, (void *)&own, sizeof own));
  group = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK));
  struct sockaddr_nl groups = {.nl_family = AF_NETLINK, .nl_groups = 5};
  MUST(bind(group, (void *)&groups, sizeof groups));
  caller = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK));
  MUST(connect(caller, (void *)&own, sizeof own));
  route = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
  ask();
  plain = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE));
  if (argc > 1 && strcmp(argv[1], "high") == 0) {
    high = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    set(high, NETLINK_ADD_MEMBERSHIP, 1);
    set(high, NETLINK_ADD_MEMBERSHIP, 33);
    set(high, NETLINK_PKTINFO, 1);
    set(high, NETLINK_NO_ENOBUFS, 1);
  }
  tamper = leave_group;
  serve(check);
}
