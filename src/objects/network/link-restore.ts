// Making the devices of network namespaces again. All namespaces of a tree are filled together, as devices of one may be tied to
// those of another: what a device is tied to comes first, and of a veth pair the second end comes with the first. Devices stay
// down until their settings are there, so that they do not find themselves addresses meanwhile.

import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { NetDeviceEntry } from "../../images/schema/messages.generated.ts";
import {
  NLA_F_NESTED,
  NLM_F_REPLACE,
  NLM_F_EXCL,
  NLM_F_CREATE,
  NLM_F_APPEND,
} from "../../sys/abi/netlink.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { AF_BRIDGE } from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import {
  attribute,
  attributes,
  decodeMessages,
  u32,
  type NetlinkMessage,
  type NetlinkSocket,
} from "../../sys/netlink.ts";
import type { GivenDevices } from "./given-devices.ts";
import {
  bad,
  basics,
  BRIDGE_PORT_SETTINGS,
  BRIDGE_SETTINGS,
  chosen,
  further,
  infoOf,
  macvlanFurther,
  otherNames,
  sitData,
  TOLD_ONLY,
} from "./link-attributes.ts";
import { LinkRequests, type FilledNamespace, type PlacedDevice } from "./link-requests.ts";
import { externalDevice } from "./external.ts";
import { isGroup, ND, readLinks } from "./links.ts";
import { holdAddresses, restoreDeviceSettings } from "./sysctls.ts";
import { makeTunDevice } from "./tun-device.ts";

export interface LinksRestore {
  /** The engine's own namespace, where the caller's devices are. */
  readonly home: { readonly fd: number; readonly socket: NetlinkSocket };
  /** `--external` words. */
  readonly external: readonly string[];
  readonly weakSysctls: boolean;
  /** Takes note of what is moved in. */
  readonly given: Pick<GivenDevices, "note">;
  outerUid(uid: number): number;
  outerGid(gid: number): number;
}

/** Makes all devices. @throws RepriseError UNSUPPORTED, SYSCALL naming the device */
export function restoreLinks(namespaces: readonly FilledNamespace[], restore: LinksRestore): void {
  const maker = new LinkMaker(namespaces, restore);
  let waiting = namespaces.flatMap((namespace) =>
    namespace.devices.map((device) => ({ namespace, device })),
  );
  while (waiting.length > 0) {
    const left = waiting.filter((one) => !maker.make(one));
    if (left.length === waiting.length) {
      const { device } = left[0] as PlacedDevice;
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore network device ${device.name}: what it is tied to is not in the images`,
      );
    }
    waiting = left;
  }
  for (const namespace of namespaces)
    for (const device of namespace.devices) maker.settle({ namespace, device });
  // A bridge takes groups for ports that are up.
  for (const namespace of namespaces)
    for (const device of namespace.devices) maker.tellNeighbours({ namespace, device });
}

class LinkMaker {
  readonly #byId: ReadonlyMap<number, FilledNamespace>;
  readonly #restore: LinksRestore;
  readonly #requests: LinkRequests;
  readonly #made = new Set<NetDeviceEntry>();
  /** Second ends of veth pairs. */
  readonly #there = new Set<NetDeviceEntry>();

  constructor(namespaces: readonly FilledNamespace[], restore: LinksRestore) {
    this.#byId = new Map(namespaces.map((namespace) => [namespace.id, namespace]));
    this.#restore = restore;
    this.#requests = new LinkRequests(restore.home.socket);
  }

  /** Makes a device, unless something that it needs is not there yet. */
  make(one: PlacedDevice): boolean {
    const { namespace, device } = one;
    const master = namespace.devices.find(({ ifindex }) => ifindex === device.master);
    if (device.master !== undefined && master === undefined) {
      throw bad(device, `its master, device ${device.master}, is missing`);
    }
    if (master !== undefined && !this.#made.has(master)) return false;
    if (!this.#create(one)) return false;
    this.#made.add(device);
    inNetNamespace(namespace.fd, () => {
      restoreDeviceSettings(device, namespace.netns, { weak: this.#restore.weakSysctls });
      holdAddresses(device.name);
    });
    if (master !== undefined)
      this.#requests.set(one, {
        doing: "add to its master",
        parts: [attribute(rt.IFLA_MASTER, u32(master.ifindex))],
      });
    if (master?.type === ND.BRIDGE) {
      const parts = { kind: rt.IFLA_INFO_SLAVE_KIND, data: rt.IFLA_INFO_SLAVE_DATA };
      this.#setData(one, parts, BRIDGE_PORT_SETTINGS);
    }
    return true;
  }

  /** Brings a device up. */
  settle(one: PlacedDevice): void {
    const { device, namespace } = one;
    this.#requests.send(namespace, {
      device,
      doing: "bring up",
      index: 0,
      flags: device.flags,
      // A bridge has taken over the mtu of its first port.
      parts: [
        attribute(rt.IFLA_IFNAME, device.name),
        attribute(rt.IFLA_MTU, u32(device.mtu)),
        // Not taken when a device is made.
        ...chosen(attributes(Buffer.from(device.link_attributes ?? []), 0), [rt.IFLA_IFALIAS]),
      ],
    });
    const names = otherNames(device);
    if (names !== undefined) {
      const parts = [attribute(rt.IFLA_PROP_LIST | NLA_F_NESTED, names)];
      this.#requests.send(namespace, {
        device,
        doing: "give other names",
        index: device.ifindex,
        flags: 0,
        parts,
        type: rt.RTM_NEWLINKPROP,
        request: NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND,
      });
    }
  }

  /** Tells what has been written down about a device's neighbours. */
  tellNeighbours({ device, namespace }: PlacedDevice): void {
    for (const message of decodeMessages(Buffer.from(device.neighbours ?? []))) {
      const flags = NLM_F_CREATE | howToAdd(message);
      const answer = namespace.socket.tryRequest({ ...message, flags });
      if (typeof answer === "number") {
        log.warn(`cannot tell ${device.name} of a neighbour: ${errnoName(-answer)}`);
      }
    }
  }

  #create(one: PlacedDevice): boolean {
    const { device } = one;
    const { external } = this.#restore;
    const given = externalDevice(external, "netdev", device.name);
    if (given !== undefined) {
      this.#moveIn(one, given);
      return true;
    }
    switch (device.type) {
      case ND.LOOPBACK:
        this.#requests.set(one, { doing: "set", parts: [...basics(device), ...further(device)] });
        return true;
      case ND.VETH:
        return this.#makeVeth(one);
      case ND.TUN:
        inNetNamespace(one.namespace.fd, () => makeTunDevice(device, this.#restore));
        this.#requests.set(one, { doing: "set", parts: [...basics(device), ...further(device)] });
        return true;
      case ND.BRIDGE:
        this.#makeKind(one, "bridge", []);
        this.#setData(one, { kind: rt.IFLA_INFO_KIND, data: rt.IFLA_INFO_DATA }, BRIDGE_SETTINGS);
        return true;
      case ND.MACVLAN:
        return this.#makeMacvlan(one);
      case ND.SIT:
        return this.#makeKind(one, "sit", sitData(device));
      case ND.VENET:
        return this.#makeKind(one, "venet", []);
      case ND.EXTLINK:
        return this.#makeOther(one);
      default:
        throw bad(device, `its type ${device.type} is not known`);
    }
  }

  #makeVeth(one: PlacedDevice): boolean {
    const { device } = one;
    if (this.#there.has(device)) {
      this.#requests.set(one, { doing: "set", parts: [...basics(device), ...further(device)] });
      return true;
    }
    const outside = externalDevice(this.#restore.external, "veth", device.name);
    const peers = this.#byId.get(device.peer_nsid ?? -1);
    const peer = peers?.devices.find(({ ifindex }) => ifindex === device.peer_ifindex);
    const header = Buffer.alloc(rt.IFINFOMSG_SIZE);
    const other: Buffer[] = [header];
    const [out, bridge] = outside?.split("@") ?? [];
    if (out !== undefined) {
      other.push(
        attribute(rt.IFLA_IFNAME, out),
        attribute(rt.IFLA_NET_NS_FD, u32(this.#restore.home.fd)),
      );
    } else if (peers !== undefined && peer !== undefined) {
      header.writeInt32LE(peer.ifindex, 4);
      other.push(attribute(rt.IFLA_IFNAME, peer.name), attribute(rt.IFLA_NET_NS_FD, u32(peers.fd)));
      this.#there.add(peer);
    } else {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore network device ${device.name}: the other end of this veth pair was outside of the tree`,
        {
          hint: `Say what it is to be called there: --external 'veth[${device.name}]:NAME', or '…:NAME@BRIDGE'; or bring a device by --external 'netdev[${device.name}]:NAME'.`,
        },
      );
    }
    const data = [attribute(rt.VETH_INFO_PEER, Buffer.concat(other))];
    this.#requests.create(one, { kind: "veth", data });
    if (bridge !== undefined) this.#plugIn(device, out as string, bridge);
    return true;
  }

  /** Puts the outer end of a pair into a bridge of the engine's namespace, and brings it up. */
  #plugIn(device: NetDeviceEntry, out: string, bridge: string): void {
    const master = this.#requests.homeIndex(device, bridge);
    this.#requests.sendHome(device, {
      doing: `put ${out} into bridge ${bridge}`,
      index: this.#requests.homeIndex(device, out),
      parts: [attribute(rt.IFLA_MASTER, u32(master))],
      up: true,
    });
  }

  #makeMacvlan(one: PlacedDevice): boolean {
    const { device } = one;
    const { macvlan } = device;
    if (macvlan === undefined) throw bad(device, "its mode is missing");
    const info = dataOf(device);
    const mode = Buffer.alloc(2);
    mode.writeUInt16LE(macvlan.flags ?? 0);
    const data = [
      attribute(rt.IFLA_MACVLAN_MODE, u32(macvlan.mode)),
      ...(macvlan.flags === undefined ? [] : [attribute(rt.IFLA_MACVLAN_FLAGS, mode)]),
      ...chosen(info, [rt.IFLA_MACVLAN_BC_QUEUE_LEN, rt.IFLA_MACVLAN_BC_CUTOFF]),
      ...macvlanFurther(info),
    ];
    return this.#makeOnParent(one, "macvlan", data);
  }

  /** A kind that CRIU does not know, or a device that the caller has made. */
  #makeOther(one: PlacedDevice): boolean {
    const { device } = one;
    const info = infoOf(device);
    const kind = text(info.get(rt.IFLA_INFO_KIND));
    const isThere = readLinks(one.namespace.socket).some(({ name }) => name === device.name);
    if (kind === "" || isThere) {
      this.#requests.setByName(one, [...basics(device), ...further(device)]);
      return true;
    }
    const data = dataOf(device);
    const told = TOLD_ONLY[kind] ?? [];
    const settings = [...data.keys()].filter((type) => !told.includes(type));
    const sources = kind === "macvtap" ? macvlanFurther(data) : [];
    try {
      return this.#makeOnParent(one, kind, [...chosen(data, settings), ...sources]);
    } catch (error) {
      if (!(error instanceof RepriseError) || error.code !== "SYSCALL") throw error;
      // Kinds tell what is off as 0, and some refuse to be told so: by itself a device has it off, or else is told after all.
      const on = settings.filter((type) => data.get(type)?.some((byte) => byte !== 0));
      const make = (types: readonly number[]): boolean =>
        this.#makeOnParent(one, kind, [...chosen(data, types), ...sources]);
      if (!make(on)) return false;
      const fresh = this.#fresh(one);
      const off = settings.filter(
        (type) => !on.includes(type) && fresh.get(type)?.equals(data.get(type) ?? NONE) === false,
      );
      if (off.length === 0) return true;
      const flags = device.flags & ~rt.IFF_UP;
      const doing = "make it anew";
      const type = rt.RTM_DELLINK;
      const change = { device, doing, index: device.ifindex, flags, parts: [], type };
      this.#requests.send(one.namespace, change);
      return make([...on, ...off]);
    }
  }

  /** What the kernel tells now of what is special to a device's kind. */
  #fresh({ device, namespace }: PlacedDevice): Map<number, Buffer> {
    const link = readLinks(namespace.socket).find(({ name }) => name === device.name);
    return attributes(link?.info.get(rt.IFLA_INFO_DATA) ?? NONE, 0);
  }

  /** A device on top of another one: of the tree, or the caller's. */
  #makeOnParent(one: PlacedDevice, kind: string, data: readonly Buffer[]): boolean {
    const { device, namespace } = one;
    const given = externalDevice(this.#restore.external, "macvlan", device.name);
    const inner = attribute(rt.IFLA_NET_NS_FD, u32(namespace.fd));
    if (given !== undefined) {
      const parent = attribute(rt.IFLA_LINK, u32(this.#requests.homeIndex(device, given)));
      const more = [parent, inner];
      this.#requests.create({ ...one, from: this.#restore.home.socket }, { kind, data, more });
      return true;
    }
    if (
      device.peer_ifindex === undefined ||
      (device.peer_ifindex === device.ifindex && device.peer_nsid === namespace.id)
    ) {
      this.#requests.create(one, { kind, data });
      return true;
    }
    const parents = this.#byId.get(device.peer_nsid ?? -1);
    const parent = parents?.devices.find(({ ifindex }) => ifindex === device.peer_ifindex);
    if (parents === undefined || parent === undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore network device ${device.name} (${kind}): the device that it stands on was outside of the tree`,
        { hint: `Name one: --external 'macvlan[${device.name}]:DEVICE'.` },
      );
    }
    if (!this.#made.has(parent)) return false;
    const link = attribute(rt.IFLA_LINK, u32(parent.ifindex));
    if (parents === namespace) this.#requests.create(one, { kind, data, more: [link] });
    else
      this.#requests.create({ ...one, from: parents.socket }, { kind, data, more: [link, inner] });
    return true;
  }

  #makeKind(one: PlacedDevice, kind: string, data: readonly Buffer[]): boolean {
    this.#requests.create(one, { kind, data });
    return true;
  }

  /** Sets what differs from a fresh device: the kernel may tell settings of things that it does not have. */
  #setData(
    one: PlacedDevice,
    parts: { readonly kind: number; readonly data: number },
    settings: readonly number[],
  ): void {
    const saved = infoOf(one.device);
    const kind = text(saved.get(parts.kind));
    if (kind !== "bridge") return;
    const fresh = readLinks(one.namespace.socket).find(({ name }) => name === one.device.name);
    const now = attributes(fresh?.info.get(parts.data) ?? Buffer.alloc(0), 0);
    const wanted = attributes(saved.get(parts.data) ?? Buffer.alloc(0), 0);
    const changed = chosen(
      wanted,
      settings.filter(
        (type) => wanted.get(type)?.equals(now.get(type) ?? Buffer.alloc(0)) === false,
      ),
    );
    if (changed.length === 0) return;
    const info = [attribute(parts.kind, kind), attribute(parts.data, changed)];
    this.#requests.set(one, {
      doing: "set what is special to its kind",
      parts: [attribute(rt.IFLA_LINKINFO, info)],
      type: rt.RTM_NEWLINK,
    });
  }

  /** Takes a device of the engine's namespace. */
  #moveIn({ device, namespace }: PlacedDevice, given: string): void {
    const before = this.#requests.homeLink(device, given);
    this.#requests.sendHome(device, {
      doing: `move ${given} into the namespace`,
      index: before.index,
      parts: [
        attribute(rt.IFLA_IFNAME, device.name),
        attribute(rt.IFLA_NEW_IFINDEX, u32(device.ifindex)),
        attribute(rt.IFLA_NET_NS_FD, u32(namespace.fd)),
      ],
      up: false,
    });
    this.#restore.given.note({ namespace: namespace.fd, before, index: device.ifindex });
    const parts = [...basics(device), ...further(device)];
    this.#requests.set({ device, namespace }, { doing: "set", parts });
  }
}

const NONE = Buffer.alloc(0);

/** A bridge's groups are not replaced; a forwarding entry may be one of several for its address: where a vxlan sends what is for all. */
function howToAdd({ type, body }: NetlinkMessage): number {
  if (type === rt.RTM_NEWMDB) return 0;
  return body[0] === AF_BRIDGE && isOneOfMany(body) ? NLM_F_APPEND : NLM_F_REPLACE;
}

function isOneOfMany(body: Buffer): boolean {
  const found = attributes(body, rt.NDMSG_SIZE);
  const address = found.get(rt.NDA_LLADDR);
  const isForAll = isGroup(address) || address?.every((byte) => byte === 0) === true;
  return found.has(rt.NDA_DST) && !found.has(rt.NDA_MASTER) && isForAll;
}

function dataOf(device: NetDeviceEntry): Map<number, Buffer> {
  return attributes(infoOf(device).get(rt.IFLA_INFO_DATA) ?? NONE, 0);
}

function text(bytes: Buffer | undefined): string {
  return bytes?.toString("latin1").replace(/\0.*$/s, "") ?? "";
}
