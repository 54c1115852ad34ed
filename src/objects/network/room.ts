// Network namespaces: devices, addresses, routes, rules, firewall, tracked connections and settings; netns-ID.img and those
// beside it, format.md section 14. The engine's own thread goes into the namespace for what only those inside are told; the tree
// does not take part. All new namespaces of a tree are filled together, as their devices may be tied to each other.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { ImageSetReader } from "../../images/image-set-reader.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { NetnsId } from "../../images/schema/messages.generated.ts";
import { NETLINK_ROUTE } from "../../sys/abi/netlink.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { errnoName } from "../../sys/errno.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import { attribute, attributes, NetlinkSocket, u32 } from "../../sys/netlink.ts";
import { Program } from "../../tracee/program.ts";
import type { CollectedNamespace } from "../namespaces/collect.ts";
import type { PlannedNamespace } from "../namespaces/plan.ts";
import { makeNested, openMade, openOwn } from "../namespaces/nested.ts";
import type { NamespaceRoom, NamespacesDump, NamespacesRestore } from "../namespaces/room.ts";
import { collectMaps, idInside, idOutside, savedMaps } from "../namespaces/user.ts";
import { saveNetAhead, type SavedNetNamespace } from "./ahead.ts";
import { readConntrack, restoreConntrack } from "./conntrack.ts";
import { GivenDevices } from "./given-devices.ts";
import { isExternalDevice } from "./external.ts";
import { readFirewall, restoreFirewall } from "./firewall.ts";
import type { FilledNamespace } from "./link-requests.ts";
import { restoreLinks, type LinksRestore } from "./link-restore.ts";
import { linkEntries, readLinks, readNeighbours } from "./links.ts";
import {
  readNexthops,
  restoreNexthops,
  readRouting,
  restoreAddresses,
  restoreRoutes,
  restoreRules,
  settleAddresses,
  tryAddresses,
} from "./routing.ts";
import {
  holdAddresses,
  type OpenSettings,
  readNetSettings,
  readOwnSettings,
  releaseAddresses,
  restoreNetSettings,
  restoreOwnSettings,
} from "./sysctls.ts";
import { readTraffic, restoreTraffic } from "./traffic.ts";
import { readPolicies, restorePolicies } from "./ipsec.ts";
import { networkLosses } from "./losses.ts";
import { EMPTY_NETNS } from "./netns-entry.ts";
import { tunStatesOf } from "./tun-device.ts";

const FIREWALL_IMAGES = ["iptables", "ip6tables", "nftables"] as const;
const CONNTRACK_IMAGES = ["netns-ct", "netns-exp"] as const;
const ROUTING_IMAGES = ["ifaddr", "route", "route6", "rule"] as const;

export const netRoom: NamespaceRoom = {
  kind: "net",

  write(namespace, dump) {
    const fd = openSync(`/proc/${namespace.pid}/ns/net`, "r");
    try {
      inNetNamespace(fd, () => {
        writeHere(namespace, dump)?.losses.forEach(log.loss);
      });
    } finally {
      closeSync(fd);
    }
  },

  saveAhead: (namespace, dump) =>
    saveNetAhead(namespace, dump, (now, settings) => writeHere(namespace, now, settings)),

  restore(namespaces, restore) {
    const { set, plan, options } = restore;
    const user = plan.made("user");
    const maps = user === undefined ? undefined : savedMaps(set, user.id);
    const filling = openNamespaces(namespaces, restore);
    const home = {
      fd: openSync("/proc/thread-self/ns/net", "r"),
      socket: new NetlinkSocket(NETLINK_ROUTE),
    };
    const given = new GivenDevices();
    restore.atEnd({ release: () => given.release(), failed: () => given.giveBack() });
    const outerGid = (gid: number): number =>
      maps === undefined ? gid : (idOutside(maps.gid_map, gid) ?? gid);
    try {
      if (options.emptyNet === true) filling.forEach((one) => fillNothing(one, outerGid));
      else {
        fillNetNamespaces(filling, {
          reader: set.reader,
          home,
          external: options.external ?? [],
          weakSysctls: options.weakSysctls ?? false,
          given,
          outerUid: (uid) => (maps === undefined ? uid : (idOutside(maps.uid_map, uid) ?? uid)),
          outerGid,
        });
      }
    } finally {
      home.socket.close();
      closeSync(home.fd);
      for (const { fd, socket } of filling) {
        socket.close();
        closeSync(fd);
      }
    }
  },
};

/** Saves the namespace that the calling thread is in. Undefined: it is to stay empty, and has nothing but settings. */
function writeHere(
  { id, inode }: CollectedNamespace,
  { images, options, namespaces }: NamespacesDump,
  settings?: OpenSettings,
): SavedNetNamespace | undefined {
  const user = namespaces.ofRoot("user");
  const maps = user === undefined ? undefined : collectMaps(user.pid);
  const innerGid = (gid: number): number =>
    maps === undefined ? gid : (idInside(maps.gid_map, gid) ?? gid);
  if (options.emptyNet === true) {
    images.write("netns", id, [{ ...EMPTY_NETNS, ...readOwnSettings(innerGid, settings) }]);
    return undefined;
  }
  return writeNetNamespace(
    { id, inode },
    {
      images,
      external: options.external ?? [],
      settings,
      others: namespaces.all.filter(({ kind }) => kind === "net"),
      innerUid: (uid) => (maps === undefined ? uid : (idInside(maps.uid_map, uid) ?? uid)),
      innerGid,
    },
  );
}

export interface NetNamespaceDump {
  readonly images: ImageSetWriter;
  /** `--external` words. */
  readonly external: readonly string[];
  /** All network namespaces of the tree, by a task that is in each. */
  readonly others: readonly { readonly id: number; readonly pid: number }[];
  innerUid(uid: number): number;
  innerGid(gid: number): number;
  /** Its settings, if they are open. */
  readonly settings?: OpenSettings | undefined;
}

/** Writes the images of the namespace that the calling thread is in. @throws RepriseError UNSUPPORTED, SYSCALL */
export function writeNetNamespace(
  { id, inode }: { readonly id: number; readonly inode: number },
  dump: NetNamespaceDump,
): SavedNetNamespace {
  const { images, external } = dump;
  const socket = new NetlinkSocket(NETLINK_ROUTE);
  try {
    // The kernel gives a namespace a number when a device tells of its peer there.
    const links = readLinks(socket);
    const losses = networkLosses();
    const traffic = readTraffic(socket, links, (device, what) =>
      losses.push(`network device ${device}: its ${what} is not saved`),
    );
    const policies = readPolicies();
    const neighbours = readNeighbours(socket, links);
    const nsids = numbersOf(socket, dump.others);
    const isKnown = links.every(({ name }) => dump.settings?.knows(name) === true);
    const settings = readNetSettings(
      (gid) => dump.innerGid(gid),
      isKnown ? dump.settings : undefined,
    );
    const tuns = tunStatesOf(images);
    const devices = linkEntries(links, {
      namespace: id,
      namespaces: new Map(
        nsids.map(({ target_ns_id: target, netnsid_value: number }) => [number, target]),
      ),
      settings,
      isExternal: (device) => isExternalDevice(external, device),
      neighbours,
      tuns: {
        of: (device) => tuns.get(`${inode}/${device}`),
        innerUid: (uid) => dump.innerUid(uid),
        innerGid: (gid) => dump.innerGid(gid),
      },
    });
    const nexthops = readNexthops(socket);
    const more = { nexthops, traffic, ipsec_policies: policies };
    images.write("netns", id, [{ ...EMPTY_NETNS, ...settings.netns, nsids, ...more }]);
    images.write("netdev", id, devices);
    const routing = readRouting(socket);
    for (const image of ROUTING_IMAGES) writeRaw(images, image, id, routing[image]);
    const firewall = readFirewall();
    for (const image of FIREWALL_IMAGES) writeRaw(images, image, id, Buffer.from(firewall[image]));
    for (const image of CONNTRACK_IMAGES) writeRaw(images, image, id, readConntrack(image));
    return { links, neighbours, losses };
  } finally {
    socket.close();
  }
}

type RawNetImage =
  | (typeof ROUTING_IMAGES)[number]
  | (typeof FIREWALL_IMAGES)[number]
  | (typeof CONNTRACK_IMAGES)[number];

function writeRaw(images: ImageSetWriter, kind: RawNetImage, id: number, content: Buffer): void {
  using image = images.openRaw(kind, id);
  image.write(content);
}

function readRaw(reader: ImageSetReader, kind: RawNetImage, id: number): Buffer {
  try {
    using image = reader.openRaw(kind, id);
    return Buffer.from(image.bytes(0, image.size));
  } catch (error) {
    // CRIU leaves out what there is none of.
    if (error instanceof RepriseError && error.code === "IMAGE_MISSING") return Buffer.alloc(0);
    throw error;
  }
}

/** The numbers by which the socket's namespace knows the others of the tree. */
function numbersOf(socket: NetlinkSocket, others: NetNamespaceDump["others"]): NetnsId[] {
  return others.flatMap(({ id, pid }) => {
    const answer = socket.tryRequest({
      type: rt.RTM_GETNSID,
      body: Buffer.concat([Buffer.alloc(4), attribute(rt.NETNSA_PID, u32(pid))]),
    });
    if (typeof answer === "number") return [];
    const [body] = answer;
    const number =
      body === undefined ? -1 : attributes(body, 4).get(rt.NETNSA_NSID)?.readInt32LE(0);
    return number === undefined || number < 0 ? [] : [{ target_ns_id: id, netnsid_value: number }];
  });
}

/** Makes the further namespaces, and opens all of them in the engine. */
function openNamespaces(
  namespaces: readonly PlannedNamespace[],
  restore: NamespacesRestore,
): FilledNamespace[] {
  const { rootPid, set } = restore;
  keepOwn(namespaces, restore);
  return makeNested("net", namespaces, restore).map((made) => {
    const planned = made.namespace;
    const fd = openMade(made, rootPid);
    const saved = set.namespaces.net.get(planned.id);
    return {
      id: planned.id,
      fd,
      socket: inNetNamespace(fd, () => new NetlinkSocket(NETLINK_ROUTE)),
      netns: saved?.netns ?? EMPTY_NETNS,
      devices: saved?.devices ?? [],
    };
  });
}

/** The root task keeps its own at hand, too. */
function keepOwn(namespaces: readonly PlannedNamespace[], restore: NamespacesRestore): void {
  const root = restore.plan.ofRoot("net");
  if (root === undefined || namespaces.every(({ role }) => role === "root")) return;
  const program = new Program();
  const label = "keep the root's network namespace";
  const own = restore.keep(program, openOwn(program, "net"), label);
  restore.setDescriptor(root, restore.run(program).value(own));
}

export interface NetNamespacesFill extends LinksRestore {
  readonly reader: ImageSetReader;
}

/** Fills fresh namespaces from their images. @throws RepriseError BAD_IMAGE, UNSUPPORTED, SYSCALL */
export function fillNetNamespaces(
  filling: readonly FilledNamespace[],
  restore: NetNamespacesFill,
): void {
  const weak = restore.weakSysctls;
  for (const { fd, netns } of filling) {
    inNetNamespace(fd, () => {
      restoreNetSettings(netns, { outerGid: (gid) => restore.outerGid(gid), weak });
      holdAddresses("all");
    });
  }
  for (const one of filling) tellNumbers(one, filling);
  restoreLinks(filling, restore);
  for (const { id, fd, socket, netns, devices } of filling) {
    const raw = (kind: RawNetImage): Buffer => readRaw(restore.reader, kind, id);
    restoreAddresses(socket, raw("ifaddr"));
    restoreNexthops(socket, netns.nexthops ?? Buffer.alloc(0));
    restoreRoutes(socket, "route", raw("route"));
    restoreRoutes(socket, "route6", raw("route6"));
    restoreRules(socket, raw("rule"));
    settleAddresses(socket);
    inNetNamespace(fd, () => {
      for (const { name, conf6 } of devices) releaseAddresses(name, conf6, { weak });
      releaseAddresses("all", netns.all_conf6, { weak });
      tryAddresses(socket, raw("ifaddr"));
      for (const kind of FIREWALL_IMAGES) restoreFirewall(kind, raw(kind).toString("utf8"));
      for (const kind of CONNTRACK_IMAGES) restoreConntrack(kind, raw(kind));
      restorePolicies(netns.ipsec_policies ?? Buffer.alloc(0));
      restoreTraffic(socket, netns.traffic ?? Buffer.alloc(0));
    });
  }
}

/** The namespaces know each other by the numbers that they had. */
function tellNumbers(
  { socket, netns }: FilledNamespace,
  filling: readonly FilledNamespace[],
): void {
  for (const { target_ns_id: target, netnsid_value: number } of netns.nsids) {
    const other = filling.find(({ id }) => id === target);
    if (other === undefined) continue;
    const answer = socket.tryRequest({
      type: rt.RTM_NEWNSID,
      body: Buffer.concat([
        Buffer.alloc(4),
        attribute(rt.NETNSA_FD, u32(other.fd)),
        attribute(rt.NETNSA_NSID, u32(number)),
      ]),
    });
    if (typeof answer !== "number") continue;
    throw new RepriseError(
      "SYSCALL",
      `cannot restore network namespace ${target}: number it ${number}: netlink: ${errnoName(-answer)}`,
      { errno: errnoName(-answer) },
    );
  }
}

/** Of a namespace that is to stay empty only what holds for the whole of it is set: nobody else knows that. */
function fillNothing(
  { fd, socket, netns }: FilledNamespace,
  outerGid: (gid: number) => number,
): void {
  inNetNamespace(fd, () => restoreOwnSettings(netns, { outerGid }));
  const body = Buffer.alloc(rt.IFINFOMSG_SIZE);
  body.writeUInt32LE(rt.IFF_UP, 8);
  body.writeUInt32LE(rt.IFF_UP, 12);
  socket.request({
    type: rt.RTM_SETLINK,
    body: Buffer.concat([body, attribute(rt.IFLA_IFNAME, "lo")]),
  });
}
