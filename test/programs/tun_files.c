// tun and tap devices in a network namespace of the program's own: a tun device that goes with its file, over which a packet
// comes and goes; a tap device that stays, with an owner and a buffer size; two queues of one device, one of them detached; a
// file that is attached to nothing yet.
#include "test.h"
#include <arpa/inet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int tun, tap, queues[2], loose, control;

static int open_tun(void) { return MUST(open("/dev/net/tun", O_RDWR | O_NONBLOCK)); }

static struct ifreq request(const char *name, int flags) {
  struct ifreq one = {.ifr_flags = (short)flags};
  snprintf(one.ifr_name, IFNAMSIZ, "%s", name);
  return one;
}

static void attach(int fd, const char *name, int flags) {
  struct ifreq one = request(name, flags);
  MUST(ioctl(fd, TUNSETIFF, &one));
}

static void expect_attached(int fd, const char *name, int flags) {
  struct ifreq one = {0};
  EXPECT(ioctl(fd, TUNGETIFF, &one) == 0, "%s: TUNGETIFF: %m", name);
  EXPECT(strcmp(one.ifr_name, name) == 0 && (one.ifr_flags & flags) == flags, "attached to %s with %x, wanted %s with %x",
         one.ifr_name, one.ifr_flags, name, flags);
}

static void give_address(const char *name, const char *address) {
  struct ifreq one = request(name, 0);
  struct sockaddr_in *in = (void *)&one.ifr_addr;
  in->sin_family = AF_INET;
  inet_pton(AF_INET, address, &in->sin_addr);
  MUST(ioctl(control, SIOCSIFADDR, &one));
  inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
  MUST(ioctl(control, SIOCSIFNETMASK, &one));
  one = request(name, IFF_UP | IFF_RUNNING);
  MUST(ioctl(control, SIOCSIFFLAGS, &one));
}

// What is sent to a neighbour of the tun device comes out of its file.
static void send_through(void) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
  inet_pton(AF_INET, "10.77.0.2", &to.sin_addr);
  int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  EXPECT(sendto(fd, "through the tunnel", 19, 0, (void *)&to, sizeof to) == 19, "sendto: %m");
  close(fd);
  char packet[1500] = "";
  bool found = false;
  for (int i = 0; i < 200 && !found; i++) {
    ssize_t length = read(tun, packet, sizeof packet);
    if (length == 20 + 8 + 19) found = strcmp(packet + 28, "through the tunnel") == 0;
    if (length < 0) sleep_ms(10);
  }
  EXPECT(found, "nothing came out of the tun file");
}

static void check(void) {
  expect_attached(tun, "rtun", IFF_TUN | IFF_NO_PI);
  send_through();
  expect_attached(tap, "rtap", IFF_TAP | IFF_PERSIST);
  int size = 0;
  EXPECT(ioctl(tap, TUNGETSNDBUF, &size) == 0 && size == 77777, "send buffer of %d", size);
  expect_attached(queues[0], "rqueues", IFF_TUN | IFF_MULTI_QUEUE);
  expect_attached(queues[1], "rqueues", IFF_DETACH_QUEUE);
  struct ifreq one = {0};
  EXPECT(ioctl(loose, TUNGETIFF, &one) == -1 && errno == EBADFD, "the loose file is attached to %s", one.ifr_name);
  EXPECT(if_nametoindex("rtap") == 52, "rtap has index %u", if_nametoindex("rtap"));
}

static void take_away(void) {
  close(tap);
  tap = open_tun();
}

int main(void) {
  begin();
  MUST(unshare(CLONE_NEWNET));
  control = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  tun = open_tun();
  attach(tun, "rtun", IFF_TUN | IFF_NO_PI);
  give_address("rtun", "10.77.0.1");
  tap = open_tun();
  unsigned index = 52;
  MUST(ioctl(tap, TUNSETIFINDEX, &index));
  attach(tap, "rtap", IFF_TAP);
  MUST(ioctl(tap, TUNSETPERSIST, 1));
  MUST(ioctl(tap, TUNSETOWNER, 7));
  int size = 77777;
  MUST(ioctl(tap, TUNSETSNDBUF, &size));
  for (int i = 0; i < 2; i++) attach(queues[i] = open_tun(), "rqueues", IFF_TUN | IFF_MULTI_QUEUE);
  struct ifreq detach = {.ifr_flags = IFF_DETACH_QUEUE};
  MUST(ioctl(queues[1], TUNSETQUEUE, &detach));
  loose = open_tun();
  tamper = take_away;
  serve(check);
}
