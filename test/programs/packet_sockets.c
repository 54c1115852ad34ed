// Packet sockets on the loopback device, with a protocol that nobody uses: one that receives, one with rings in memory that
// the program maps, memberships, a fanout group, and one of the old type, which is bound by the device's name.
#include "test.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { PROTOCOL = 0x88b5, OLD = 0x88b6, FANOUT = 0x5250, BLOCK = 4096, FRAME = 1024 };
static int sender, receiver, ringed, fanout, old, member;
static int lo;
static char *ring;

static int make(int type, int protocol) {
  int fd = MUST(socket(AF_PACKET, type, htons(protocol)));
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = lo};
  MUST(bind(fd, (void *)&address, sizeof address));
  return fd;
}

static void set(int fd, int option, int value) { MUST(setsockopt(fd, SOL_PACKET, option, &value, sizeof value)); }

static int get(int fd, int option) {
  int value = -1;
  socklen_t length = sizeof value;
  MUST(getsockopt(fd, SOL_PACKET, option, &value, &length));
  return value;
}

static void send_one(const char *text, int protocol) {
  struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = lo, .sll_halen = 6};
  EXPECT(sendto(sender, text, strlen(text) + 1, 0, (void *)&to, sizeof to) > 0, "sending: %m");
}

static void expect(int fd, const char *what, const char *text) {
  char got[64] = "";
  ssize_t length = -1;
  WITHIN(2000, (length = recv(fd, got, sizeof got - 1, MSG_DONTWAIT)) >= 0);
  EXPECT(length > 0 && strcmp(got, text) == 0, "%s: %zd bytes: %s, wanted %s", what, length, got, text);
}

static bool ring_has(const char *text) {
  for (char *frame = ring; frame < ring + BLOCK; frame += FRAME) {
    struct tpacket2_hdr *head = (void *)frame;
    if ((head->tp_status & TP_STATUS_USER) == 0) continue;
    bool found = strcmp(frame + head->tp_net, text) == 0;
    head->tp_status = TP_STATUS_KERNEL;
    if (found) return true;
  }
  return false;
}

// Loopback packets come twice: on the way out and on the way in.
static void drain(int fd) {
  char text[64];
  while (recv(fd, text, sizeof text, MSG_DONTWAIT) >= 0) continue;
  for (char *frame = ring; frame < ring + BLOCK; frame += FRAME) ((struct tpacket2_hdr *)frame)->tp_status = TP_STATUS_KERNEL;
}

static void check(void) {
  for (int fd = 0; fd < 3; fd++) drain((int[]){receiver, fanout, old}[fd]);
  send_one("hello", PROTOCOL);
  expect(receiver, "the receiver", "hello");
  expect(fanout, "the fanout", "hello");
  EXPECT(WITHIN(2000, ring_has("hello")), "nothing came into the ring");
  EXPECT(get(ringed, PACKET_VERSION) == TPACKET_V2 && get(ringed, PACKET_RESERVE) == 32, "the ring's version or reserve");
  EXPECT(get(receiver, PACKET_AUXDATA) == 1 && get(receiver, PACKET_ORIGDEV) == 1, "options of the receiver");
  EXPECT((get(fanout, PACKET_FANOUT) & 0xffff) == FANOUT, "fanout %x", get(fanout, PACKET_FANOUT));
  send_one("old style, long enough", OLD);
  char text[64];
  EXPECT(WITHIN(2000, recv(old, text, sizeof text, MSG_DONTWAIT) > 0), "nothing came to the old socket");
  struct packet_mreq wanted = {.mr_ifindex = lo, .mr_type = PACKET_MR_ALLMULTI};
  EXPECT(setsockopt(member, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &wanted, sizeof wanted) == 0 &&
             setsockopt(member, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &wanted, sizeof wanted) == 0,
         "the membership is gone: %m");
}

static void forget(void) { set(receiver, PACKET_AUXDATA, 0); }

int main(void) {
  begin();
  lo = (int)if_nametoindex("lo");
  sender = make(SOCK_DGRAM, 0);
  receiver = make(SOCK_DGRAM, PROTOCOL);
  set(receiver, PACKET_AUXDATA, 1);
  set(receiver, PACKET_ORIGDEV, 1);
  ringed = make(SOCK_DGRAM, PROTOCOL);
  set(ringed, PACKET_VERSION, TPACKET_V2);
  set(ringed, PACKET_RESERVE, 32);
  struct tpacket_req request = {BLOCK, 1, FRAME, BLOCK / FRAME};
  MUST(setsockopt(ringed, SOL_PACKET, PACKET_RX_RING, &request, sizeof request));
  ring = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, ringed, 0);
  if (ring == MAP_FAILED) MUST(-1);
  fanout = make(SOCK_DGRAM, PROTOCOL);
  set(fanout, PACKET_FANOUT, FANOUT | PACKET_FANOUT_HASH << 16);
  member = make(SOCK_RAW, 0);
  struct packet_mreq all = {.mr_ifindex = lo, .mr_type = PACKET_MR_ALLMULTI};
  MUST(setsockopt(member, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all));
  old = MUST(socket(AF_PACKET, SOCK_PACKET, htons(OLD)));
  struct sockaddr name = {.sa_family = AF_PACKET};
  strcpy(name.sa_data, "lo");
  MUST(bind(old, &name, sizeof name));
  tamper = forget;
  serve(check);
}
