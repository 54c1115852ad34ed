// What is in a network namespace, saved and put into a fresh one: the tools of the system must tell the same of both.

import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, onTestFinished } from "vitest";
import { ImageSetReader } from "../../images/image-set-reader.ts";
import { ImageSetWriter } from "../../images/image-set-writer.ts";
import { setLogSink } from "../../log.ts";
import { NETLINK_ROUTE } from "../../sys/abi/netlink.ts";
import { NetlinkSocket } from "../../sys/netlink.ts";
import { NetNamespace } from "./net-namespace.fixture.ts";
import { fillNetNamespaces, writeNetNamespace } from "./room.ts";

let dir: string;
let tasks: ChildProcess[];
/** What the images lack of what was carried over. */
let lost: string[];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "reprise-netns-"));
  tasks = [];
  lost = [];
});

afterEach(() => {
  for (const task of tasks) task.kill("SIGKILL");
  rmSync(dir, { recursive: true, force: true });
});

/** What the tools tell; without what counts up, and what is still being tried out. */
const ASK = [
  "ip -d addr",
  "ip route show table all",
  "ip -6 route show table all",
  "ip nexthop",
  "ip rule",
  "ip -6 rule",
  "ip neigh show nud permanent",
  "nft list ruleset",
  "iptables-legacy-save 2>/dev/null",
];
const VOLATILE = /(gc|forward_delay|hello)_timer +\S+|\[\d+:\d+\]|^#.*$/gm;

/** Addresses are used at once, so that nothing changes while the tools look. */
const QUIET = "for i in all default; do echo 0 > /proc/sys/net/ipv6/conf/$i/accept_dad; done";

function tellAll(net: NetNamespace): string[] {
  return ASK.map((command) => {
    const lines = net.run(command).replace(VOLATILE, "").split("\n");
    const told = lines.map((line) => line.trim().replace(/ +/g, " "));
    return command.startsWith("ip ") && command.includes("route")
      ? told.toSorted().join("\n")
      : told.join("\n");
  });
}

/** Saves namespaces under the numbers 10, 11, …, and puts them into fresh ones. */
function carryOver(
  from: readonly NetNamespace[],
  external: readonly string[] = [],
): NetNamespace[] {
  const images = new ImageSetWriter(dir, { sync: "none" });
  // A task in each, as the kernel is asked by pids.
  const namespaces = from.map((net, index) => {
    const task = net.inside(() => spawn("sleep", ["60"]));
    tasks.push(task);
    return { kind: "net" as const, id: 10 + index, inode: index, pid: task.pid as number };
  });
  for (const [index, { id, inode }] of namespaces.entries()) {
    const net = from[index] as NetNamespace;
    net.inside(() => {
      const written = writeNetNamespace(
        { id, inode },
        { images, external, others: namespaces, innerUid: (uid) => uid, innerGid: (gid) => gid },
      );
      lost.push(...written.losses);
    });
  }
  images.commit({ img_version: 2, fdinfo_per_id: true });
  const reader = new ImageSetReader(dir);
  const fresh = from.map(() => new NetNamespace("ip link set lo down"));
  using home = new NetNamespace();
  const filling = fresh.map((net, index) => ({
    id: 10 + index,
    fd: net.fd,
    socket: net.inside(() => new NetlinkSocket(NETLINK_ROUTE)),
    netns: reader.readOne("netns", 10 + index),
    devices: reader.read("netdev", 10 + index),
  }));
  const socket = home.inside(() => new NetlinkSocket(NETLINK_ROUTE));
  fillNetNamespaces(filling, {
    reader,
    home: { fd: home.fd, socket },
    external,
    weakSysctls: false,
    given: { note: () => undefined },
    outerUid: (uid) => uid,
    outerGid: (gid) => gid,
  });
  return fresh;
}

it("carries over devices, addresses, routes, rules, neighbours and firewall", async () => {
  using net = new NetNamespace(
    QUIET,
    "ip link add br0 type bridge forward_delay 500",
    "ip link add va type veth peer name vb",
    "ip link set vb master br0",
    "bridge link set dev vb isolated on",
    "ip link add mv0 link va type macvlan mode bridge",
    "ip link add mt0 link va type macvtap mode vepa",
    "ip link add vx0 type vxlan id 5 dstport 4789 local 10.1.2.3",
    "ip link add ifb9 type ifb",
    "ip tuntap add dev tp0 mode tap user 5 pi",
    "ip addr add 10.1.2.3/24 dev va label va:1",
    "ip addr add fd00::5/64 dev va",
    "ip addr add 192.0.2.1 peer 192.0.2.2 dev mv0",
    "ip link set dev ifb9 alias 'a name'",
    "ip link set va up; ip link set vb up; ip link set mv0 up; ip link set br0 up mtu 1400",
    "until ip addr show br0 | grep -q fe80; do sleep 0.05; done",
    "ip route add 10.9.0.0/16 via 10.1.2.9 metric 7",
    "ip route add 10.8.0.0/16 via 10.1.2.9 table 77",
    "ip route add default nexthop via 10.1.2.9 weight 2 nexthop dev mv0",
    "ip route add blackhole 10.7.0.0/16",
    "ip nexthop add id 5 via 10.1.2.9 dev va; ip nexthop add id 6 dev mv0",
    "ip nexthop add id 4 group 5/6,2; ip nexthop add id 7 group 5/6 type resilient buckets 8",
    "ip route add 10.6.0.0/16 nhid 4; ip route add 10.5.0.0/16 nhid 5",
    "ip -6 route add fd01::/64 via fd00::9",
    "ip rule add from 10.8.1.1 table 77 prio 500; ip rule del prio 32767",
    "ip -6 rule add from fd02::/64 table 78 prio 501",
    "ip neigh add 10.1.2.9 lladdr 02:00:00:00:00:09 dev va nud permanent",
    "ip neigh add proxy 10.1.2.77 dev va",
    "bridge fdb add 02:00:00:00:00:11 dev vx0 dst 10.1.2.44",
    "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.1.2.45",
    "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.1.2.46",
    "bridge fdb add 02:00:00:00:00:22 dev vb master static",
    "bridge fdb add 02:00:00:00:00:33 dev va self",
    "bridge mdb add dev br0 port vb grp 239.1.1.1 permanent",
    "ip link add vx1 type vxlan external dstport 4800",
    "ip link add mv1 link va type macvlan mode source",
    "ip link set link dev mv1 type macvlan macaddr add 02:00:00:00:00:44",
    "ip link property add dev va altname a-name-that-is-longer-than-others",
    "nft add table inet foo; nft add chain inet foo c '{ type filter hook input priority 5; }'",
    "nft add rule inet foo c tcp dport 99 drop",
    "iptables-legacy -A INPUT -p tcp --dport 98 -j DROP",
  );
  const [fresh] = carryOver([net]) as [NetNamespace];
  using _ = fresh;
  // The kernel tells a device on top of another of its carrier when it finds the time.
  await expect.poll(() => tellAll(fresh), { timeout: 5_000 }).toEqual(tellAll(net));
  expect(fresh.run("bridge fdb show dev vx0")).toContain("02:00:00:00:00:11 dst 10.1.2.44");
  expect(fresh.run("bridge fdb show dev vb")).toContain("02:00:00:00:00:22 master br0 static");
  expect(fresh.run("bridge -d link show dev vb")).toContain("isolated on");
  for (const command of ["bridge fdb show dev vx0", "bridge mdb", "bridge fdb show dev va"])
    expect(fresh.run(command).split("\n").toSorted()).toEqual(
      net.run(command).split("\n").toSorted(),
    );
});

it("carries over settings of the namespace and of its devices", () => {
  const settings = {
    "ipv4/conf/all/rp_filter": "2",
    "ipv4/conf/default/arp_ignore": "1",
    "ipv4/conf/v0/proxy_arp": "1",
    "ipv4/conf/v0/bc_forwarding": "1",
    "ipv6/conf/v0/accept_ra": "2",
    "ipv6/conf/v0/accept_dad": "2",
    "ipv6/conf/v0/mtu": "1300",
    "ipv6/conf/lo/hop_limit": "99",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/stable_secret": "2001:db8::1",
    "ipv4/neigh/v0/gc_stale_time": "61",
    "ipv4/tcp_syn_retries": "7",
    "ipv4/ip_local_port_range": "40000\t41000",
    "ipv4/ping_group_range": "5\t7",
    "unix/max_dgram_qlen": "77",
  };
  using net = new NetNamespace(
    "ip link add v0 type veth peer name v1",
    ...Object.entries(settings).map(([name, value]) => `echo '${value}' > /proc/sys/net/${name}`),
    "ip link set v0 up",
    "echo 1300 > /proc/sys/net/ipv6/conf/v0/mtu",
  );
  const [fresh] = carryOver([net]) as [NetNamespace];
  using _ = fresh;
  for (const [name, value] of Object.entries(settings)) {
    const [saved, now] = [net, fresh].map((one) => one.run(`cat /proc/sys/net/${name}`).trim());
    expect([name, now]).toEqual([name, saved]);
    if (name !== "ipv6/conf/default/stable_secret") expect([name, now]).toEqual([name, value]);
  }
});

it("carries over pairs of devices between namespaces, and the numbers that these have for each other", () => {
  using one = new NetNamespace(QUIET, "ip link add a0 type veth peer name b0", "ip link set a0 up");
  using two = new NetNamespace(QUIET);
  const task = two.inside(() => spawn("sleep", ["60"]));
  tasks.push(task);
  one.run(`ip link set b0 netns ${task.pid}`);
  two.run("ip link set b0 up; ip addr add 10.5.0.2/24 dev b0");
  one.run("ip addr add 10.5.0.1/24 dev a0");
  const [first, second] = carryOver([one, two]) as [NetNamespace, NetNamespace];
  using _ = first;
  using __ = second;
  expect(tellAll(first)).toEqual(tellAll(one));
  expect(tellAll(second)).toEqual(tellAll(two));
  // Nobody listens there, and says so over the pair of devices.
  const call = "bash -c 'echo > /dev/tcp/10.5.0.2/9' 2>&1 || true";
  expect(first.run(call)).toContain("refused");
});

it("makes the outer end of a pair where the caller wants it, and refuses a pair without one", () => {
  using outer = new NetNamespace("ip link add v0 type veth peer name o0");
  using net = new NetNamespace();
  const task = net.inside(() => spawn("sleep", ["60"]));
  tasks.push(task);
  outer.run(`ip link set v0 netns ${task.pid}`);
  expect(() => carryOver([net])).toThrow(/device v0: the other end of this veth pair was outside/);
  const [fresh] = carryOver([net], ["veth[v0]:out0"]) as [NetNamespace];
  using _ = fresh;
  expect(fresh.run("ip -o link show v0")).toContain("link-netnsid");
});

it.skipIf(!existsSync("/proc/net/nf_conntrack"))(
  "carries over what is remembered of connections",
  () => {
    using net = new NetNamespace(
      "nft add table inet t; nft add chain inet t c '{ type filter hook input priority 0; }'",
      "nft add rule inet t c ct state established accept",
      "bash -c 'echo hello > /dev/udp/127.0.0.1/9'",
    );
    const tracked = (one: NetNamespace): string[] =>
      one
        .run("cat /proc/net/nf_conntrack | sed 's/ udp *17 [0-9]*/ udp/' | grep dport=9")
        .trim()
        .split("\n");
    expect(tracked(net)).toHaveLength(1);
    const [fresh] = carryOver([net]) as [NetNamespace];
    using _ = fresh;
    expect(tracked(fresh)).toEqual(tracked(net));
  },
);

it("carries over traffic control and IPsec policies", () => {
  using net = new NetNamespace(
    "ip link add a0 type veth peer name b0; ip link set a0 up; ip link set b0 up",
    "tc qdisc add dev lo root pfifo limit 55",
    "tc qdisc add dev a0 root handle 1: htb default 12 r2q 7",
    "tc class add dev a0 parent 1: classid 1:1 htb rate 100mbit ceil 200mbit quantum 20000",
    "tc class add dev a0 parent 1:1 classid 1:12 htb rate 5mbit burst 15k prio 3",
    "tc class add dev a0 parent 1:1 classid 1:13 htb rate 6mbit",
    "tc qdisc add dev a0 parent 1:12 handle 12: tbf rate 1mbit burst 32kbit latency 400ms",
    "tc filter add dev a0 protocol ip parent 1: prio 5 u32 match ip dst 10.0.0.1/32 flowid 1:12",
    "tc filter add dev a0 protocol ip parent 1: prio 1 handle 2: u32 divisor 4",
    "tc filter add dev a0 protocol ip parent 1: prio 1 u32 ht 2:3: match ip dport 99 0xffff flowid 1:13",
    "tc filter add dev a0 protocol ip parent 1: prio 1 u32 match ip src 10.0.0.0/8 link 2: hashkey mask 0xff at 12",
    "tc qdisc add dev b0 clsact",
    "tc filter add dev b0 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev a0",
    "ip xfrm policy add dir out src 10.1.0.0/16 dst 10.2.0.0/16 priority 7 tmpl src 1.1.1.1 dst 2.2.2.2 proto esp reqid 5 mode tunnel",
    "ip xfrm policy add dir in src 10.2.0.0/16 dst 10.1.0.0/16 proto tcp dport 80 action block",
  );
  const told: string[] = [];
  setLogSink((_level, text) => void told.push(text));
  onTestFinished(() => setLogSink(undefined));
  const [fresh] = carryOver([net]) as [NetNamespace];
  using _ = fresh;
  const ask = [
    "for d in lo a0 b0; do tc qdisc show dev $d; tc class show dev $d | sort; done | sed -E 's/(refcnt|direct_packets_stat) [0-9]+//g'",
    "tc filter show dev a0; tc filter show dev b0 ingress",
    "ip -o xfrm policy | sort",
  ];
  const tell = (one: NetNamespace): string[] => ask.map((command) => one.run(command));
  expect(tell(net)[1]).toMatch(/mirred/);
  expect(tell(fresh)).toEqual(tell(net));
  expect(told).toEqual([]);
});

it("knows what it loses", () => {
  using net = new NetNamespace(
    "ip link add a0 type veth peer name b0",
    "ip maddr add 33:33:00:00:00:05 dev a0",
    "tc qdisc add dev a0 root handle 1: htb",
    "tc qdisc add dev b0 root stab overhead 8 linklayer ethernet tbf rate 1mbit burst 32kbit latency 1ms",
  );
  const [fresh] = carryOver([net]) as [NetNamespace];
  fresh[Symbol.dispose]();
  expect(lost).toContain("network device a0: its multicast address 33:33:00:00:00:05 is not saved");
  expect(lost.filter((one) => !one.includes("multicast"))).toEqual([
    "network device b0: its size table of queueing discipline tbf is not saved",
  ]);
});
