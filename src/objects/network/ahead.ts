// Network namespaces that are saved while their tasks run: kept when their settings and devices are the same, and the kernel has
// told of no other change (rtnetlink(7)). It tells neither of everything about devices, nor of all neighbours, so these are asked for
// once more; and what the firewall's older tables and tracked connections hold now nobody tells: where there are some, nothing is
// saved ahead.

import { closeSync, openSync } from "node:fs";
import { log } from "../../log.ts";
import { NETLINK_NETFILTER, NETLINK_ROUTE } from "../../sys/abi/netlink.ts";
import { NETLINK_XFRM } from "../../sys/abi/xfrm.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import { attribute, NetlinkSocket } from "../../sys/netlink.ts";
import { Witness } from "../../tracee/witness.ts";
import type { CollectedNamespace } from "../namespaces/collect.ts";
import type { NamespacesDump, SavedAhead } from "../namespaces/room.ts";
import { CONNTRACK_COUNT } from "./conntrack.ts";
import { LEGACY, rulesGeneration } from "./firewall.ts";
import { readLinks, readNeighbours, type Link } from "./links.ts";
import type { NetworkLock } from "./lock.ts";
import { hasIpsec } from "./ipsec.ts";
import { VIRTUAL_SERVERS } from "./losses.ts";
import { OpenSettings } from "./sysctls.ts";

/** What was saved of a namespace. */
export interface SavedNetNamespace {
  readonly links: readonly Link[];
  readonly neighbours: ReadonlyMap<number, readonly Buffer[]>;
  readonly losses: readonly string[];
}

/** Saves the namespace that the calling thread is in. Undefined: it is to stay empty, and has nothing but settings. */
type Write = (dump: NamespacesDump, settings: OpenSettings) => SavedNetNamespace | undefined;

/** Saves a namespace; undefined when it has more than can be looked at again. */
export function saveNetAhead(
  { id, inode, pid }: CollectedNamespace,
  dump: NamespacesDump,
  write: Write,
): SavedAhead | undefined {
  const { images, options } = dump;
  const fd = openSync(`/proc/${pid}/ns/net`, "r");
  let settings: OpenSettings | undefined;
  let watch: NetWatch | undefined;
  let saved: SavedNetNamespace | undefined;
  const close = (): void => {
    settings?.[Symbol.dispose]();
    watch?.[Symbol.dispose]();
    closeSync(fd);
  };
  try {
    const names = inNetNamespace(fd, () => {
      settings = OpenSettings.ofThread({ devices: options.emptyNet !== true });
      if (settings === undefined) return undefined;
      const open = settings;
      if (options.emptyNet !== true) {
        watch = NetWatch.ofThread(pid);
        if (watch === undefined) return undefined;
      }
      return images.writtenIn(() => (saved = write(dump, open)));
    });
    if (names === undefined || settings === undefined || (saved?.losses.length ?? 0) > 0) {
      close();
      return undefined;
    }
    const open = settings;
    return {
      finish(now) {
        const isSame =
          open.isUnchanged() &&
          (saved === undefined || watch?.holds(saved, { inode, lock: now.lock }) === true);
        // What is open of it is of use all the same.
        if (!isSame) {
          log.debug(`net namespace ${id} is saved again: it has changed`);
          images.takeBack(names);
          const again = inNetNamespace(fd, () => write(now, open));
          for (const loss of again?.losses ?? []) log.loss(loss);
        }
        return true;
      },
      [Symbol.dispose]: close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

/** What is told of all changes but those of links and neighbours. */
const GROUPS = [
  rt.RTNLGRP_LINK,
  rt.RTNLGRP_TC,
  rt.RTNLGRP_IPV4_IFADDR,
  rt.RTNLGRP_IPV4_ROUTE,
  rt.RTNLGRP_IPV4_RULE,
  rt.RTNLGRP_IPV6_IFADDR,
  rt.RTNLGRP_IPV6_ROUTE,
  rt.RTNLGRP_IPV6_RULE,
  rt.RTNLGRP_NSID,
  rt.RTNLGRP_NEXTHOP,
];
/** XFRMNLGRP_SA, XFRMNLGRP_POLICY. */
const XFRM_GROUPS = [3, 4];

/** Kinds of devices of which more is saved: a bridge's groups, and what the open files of a tun device tell. */
const NOT_WATCHED = new Set(["bridge", "tun"]);
/** What changes all the time, and is not saved. */
const COUNTERS = new Set([rt.IFLA_STATS, rt.IFLA_STATS64, rt.IFLA_AF_SPEC]);

/** Looks at a namespace from its beginning to `holds`. */
class NetWatch implements Disposable {
  readonly #route = new NetlinkSocket(NETLINK_ROUTE);
  readonly #netfilter = new NetlinkSocket(NETLINK_NETFILTER);
  readonly #mail: NetlinkSocket[] = [];
  readonly #files = new Witness();
  #generation: number | undefined;

  /** In the namespace of the calling thread, which a process lives in; undefined when there is something that cannot be watched. */
  static ofThread(pid: number): NetWatch | undefined {
    const watch = new NetWatch();
    try {
      if (watch.#begin(pid)) return watch;
    } catch (error) {
      watch[Symbol.dispose]();
      throw error;
    }
    watch[Symbol.dispose]();
    return undefined;
  }

  /** Whether nothing has changed but by the lock. */
  holds(
    saved: SavedNetNamespace,
    { inode, lock }: { readonly inode: number; readonly lock: NetworkLock | undefined },
  ): boolean {
    if (this.#mail.some((socket) => socket.hasMail()) || !this.#files.holds()) return false;
    const ours = lock === undefined ? 0 : lock.generationsIn(inode);
    const generation = rulesGeneration(this.#netfilter);
    if (this.#generation === undefined ? generation !== undefined : ours === undefined)
      return false;
    if (generation !== undefined && generation !== (this.#generation ?? 0) + (ours ?? 0))
      return false;
    const links = readLinks(this.#route);
    return (
      imprint(links).equals(imprint(saved.links)) &&
      imprintOf(readNeighbours(this.#route, links)).equals(imprintOf(saved.neighbours))
    );
  }

  [Symbol.dispose](): void {
    this.#route.close();
    this.#netfilter.close();
    for (const socket of this.#mail) socket.close();
    this.#files[Symbol.dispose]();
  }

  #begin(pid: number): boolean {
    // The kernel gives namespaces numbers when a device tells of its peer there, and tells of it.
    if (readLinks(this.#route).some(({ kind }) => kind !== undefined && NOT_WATCHED.has(kind)))
      return false;
    this.#subscribe(NETLINK_ROUTE, GROUPS);
    // A kernel without IPsec has no such sockets.
    if (hasIpsec()) this.#subscribe(NETLINK_XFRM, XFRM_GROUPS);
    this.#generation = rulesGeneration(this.#netfilter);
    return this.#isEmpty(pid);
  }

  #subscribe(protocol: number, groups: readonly number[]): void {
    const socket = new NetlinkSocket(protocol);
    this.#mail.push(socket);
    socket.join(groups);
  }

  /** Whether there are no tables and connections, of which nothing is told. */
  #isEmpty(pid: number): boolean {
    const files = [LEGACY.iptables, LEGACY.ip6tables, CONNTRACK_COUNT, VIRTUAL_SERVERS];
    const sights = files.map((path) => {
      const sight = this.#files.file(path);
      // One that is missing may come, with a module of the kernel.
      if (sight === undefined) this.#files.owner(path.replace("thread-self", String(pid)));
      return sight;
    });
    if (!this.#files.take()) return false;
    const [tables, tables6, count] = sights.map((sight) =>
      sight === undefined ? "" : this.#files.text(sight).trim(),
    );
    return tables === "" && tables6 === "" && (count === "" || count === "0");
  }
}

/** All that is told of devices, but for counters. */
function imprint(links: readonly Link[]): Buffer {
  return Buffer.concat(
    links.flatMap(({ index, flags, type, attributes }) => [
      Buffer.from(`${index} ${flags} ${type};`),
      ...[...attributes]
        .filter(([number]) => !COUNTERS.has(number))
        .map(([number, value]) => attribute(number, value)),
    ]),
  );
}

/** Of neighbours by their devices. */
function imprintOf(neighbours: SavedNetNamespace["neighbours"]): Buffer {
  return Buffer.concat(
    [...neighbours].flatMap(([index, messages]) => [Buffer.from(`${index};`), ...messages]),
  );
}
