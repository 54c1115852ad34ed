// The network lock: firewall rules that keep packets away from saved connections, so that no peer is told that a connection
// is gone while nobody is there to answer. A tree in a network namespace of its own has all of it locked; in one that it shares
// with others, the engine's above all, only the tree's connections are. After a dump that ends the tasks the lock stays, and the restore takes it away; so it
// is named as CRIU's is, which finds ours and leaves its own to us. While the engine works, the lock dies with it.

import { closeSync, fstatSync } from "node:fs";
import { log } from "../../log.ts";
import type { FileEntry, InventoryEntry } from "../../images/schema/messages.generated.ts";
import { IPPROTO_TCP } from "../../sys/abi/inet.ts";
import { AF_INET, SOCK_STREAM, TCP_LISTEN } from "../../sys/abi/socket.ts";
import { syscallError } from "../../sys/ffi.ts";
import { readShortText } from "../../sys/files.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import { addressBytes, unmapped, type SocketAddress } from "../sockets/inet-address.ts";
import { IptablesLock } from "./lock-iptables.ts";
import { NftablesLock, type Dropped } from "./lock-nftables.ts";

/** How packets are kept away; `skip` leaves it to the caller. */
export type NetworkLockMethod = "nftables" | "iptables" | "skip";

/** Packets with this mark pass: a restore's own. */
export const LOCK_MARK = 0xc114;

/** network_lock_method of the inventory. */
const METHODS: readonly NetworkLockMethod[] = ["iptables", "nftables", "skip"];

/** CRIU 4.2 has 31 characters for a table with its family ("inet "), and leaves the rest of its id out. */
const CRIU_TABLE_NAME = 26;

/** The two ends of a connection, on the wire. */
export interface LockedConnection {
  readonly local: SocketAddress;
  readonly remote: SocketAddress;
}

/** Open descriptors of the tree's network namespaces other than the engine's; the lock closes them. */
export interface NetworkLockScope {
  /** Those that are the tree's alone, which are locked altogether. */
  readonly namespaces: readonly number[];
  /** One that the root task shares with strangers (external, or joined): connections are locked in it. */
  readonly shared?: number | undefined;
}

/** The rules in one network namespace. */
type Rules = NftablesLock | IptablesLock;

export class NetworkLock {
  #method: NetworkLockMethod | undefined;
  readonly #runId: string;
  readonly #namespaces: number[];
  #shared: number | undefined;
  readonly #places: Rules[] = [];
  /** Those of namespaces that are locked altogether, by their inodes. */
  readonly #whole = new Map<number, Rules>();
  /** The one among them that holds connections. */
  #connections: Rules | undefined;
  /** Of a restore: what the dump left. */
  readonly #found: { readonly rules: Rules; readonly dropped: Dropped }[] = [];

  private constructor(
    method: NetworkLockMethod | undefined,
    runId: string,
    scope: NetworkLockScope,
  ) {
    this.#method = method;
    this.#runId = runId;
    this.#namespaces = [...scope.namespaces];
    this.#shared = scope.shared;
  }

  /** A lock for a dump: nf_tables if nothing else is asked for and the kernel has them, else iptables. */
  static forDump(
    scope: NetworkLockScope & { readonly method?: NetworkLockMethod | undefined },
  ): NetworkLock {
    return new NetworkLock(scope.method, newRunId(), scope);
  }

  /** The lock that the dump of an image set left behind, or would have. */
  static forRestore(
    inventory: InventoryEntry,
    scope: NetworkLockScope & { readonly rootPid: number },
  ): NetworkLock {
    const method = METHODS[inventory.network_lock_method ?? 0] ?? "skip";
    return new NetworkLock(method, inventory.dump_criu_run_id ?? String(scope.rootPid), scope);
  }

  /** Whether the root task lives in another network namespace than the engine. */
  get isElsewhere(): boolean {
    return this.isWhole || this.#shared !== undefined;
  }

  /** Whether the root task's network namespace is locked altogether. */
  get isWhole(): boolean {
    return this.#namespaces.length > 0 && this.#shared === undefined;
  }

  /** What a restore must know to find the lock; nothing if there was nothing to lock. */
  get inventory(): Pick<InventoryEntry, "network_lock_method" | "dump_criu_run_id"> {
    if (this.#method === undefined) return {};
    return { network_lock_method: METHODS.indexOf(this.#method), dump_criu_run_id: this.#runId };
  }

  /**
   * Locks the namespaces that are the tree's alone, if it has any.
   * @throws RepriseError SYSCALL when the firewall cannot be set up; nothing stays locked then.
   */
  lockNamespaces(): void {
    if (this.#namespaces.length === 0 || this.#chosen() === "skip") return;
    try {
      for (const namespace of this.#namespaces) {
        const rules = this.#place(namespace);
        this.#whole.set(fstatSync(namespace).ino, rules);
        rules.drop(this.#ownTable, "all");
      }
    } catch (error) {
      this.unlock();
      throw error;
    }
  }

  /** How many generations of the rules of a namespace (by its inode) are due to the lock; undefined where that is not known. */
  generationsIn(inode: number): number | undefined {
    const rules = this.#whole.get(inode);
    if (rules instanceof IptablesLock) return undefined;
    return rules?.generations ?? 0;
  }

  /**
   * Locks connections in a namespace that the root task shares with others; those in the tree's own are locked already.
   * @throws RepriseError SYSCALL; the caller ends the lock then.
   */
  lockConnections(connections: readonly LockedConnection[]): void {
    if (this.isWhole || connections.length === 0 || this.#chosen() === "skip") return;
    const dropped = connections.map(onTheWire);
    if (this.#connections !== undefined) this.#connections.dropMore(dropped);
    else {
      this.#connections = this.#place(this.#shared);
      this.#connections.drop(this.#ownTable, dropped);
    }
  }

  /** For a restore: takes over the lock that the dump left, or makes one. */
  takeOver(connections: readonly LockedConnection[]): void {
    if (!this.isElsewhere && connections.length === 0) return;
    if (this.#chosen() === "skip") return;
    for (const namespace of this.#namespaces) this.#takeOne(namespace, ["all"]);
    if (this.isWhole) return;
    // CRIU locks a shared namespace altogether, too.
    const whole: Dropped[] = this.#shared === undefined ? [] : ["all"];
    const some: Dropped[] = connections.length === 0 ? [] : [connections.map(onTheWire)];
    this.#takeOne(this.#shared, [...whole, ...some]);
  }

  /** Looks for what may have been left, and makes the last of it otherwise. */
  #takeOne(namespace: number | undefined, candidates: readonly Dropped[]): void {
    try {
      const rules = this.#place(namespace);
      const dropped = candidates.find((one) => rules.exists(this.#leftTable, one));
      const wanted = candidates.at(-1);
      if (dropped !== undefined) this.#found.push({ rules, dropped });
      else if (wanted !== undefined && (wanted !== "all" || namespace !== this.#shared)) {
        rules.drop(this.#ownTable, wanted);
      }
    } catch (error) {
      // The firewall was another machine's; without a lock a peer may see a packet too early, no more.
      log.warn(`the network is not locked during the restore: ${String(error)}`);
    }
  }

  /** Leaves the lock to the restore. @throws RepriseError SYSCALL; it is unlocked then. */
  leave(): void {
    try {
      for (const rules of this.#places) rules.leave(this.#leftTable);
    } finally {
      this.#close();
    }
  }

  /** Lets the packets through again, also those that a dump locked out. */
  unlock(): void {
    for (const { rules, dropped } of this.#found.splice(0)) {
      quietly(() => rules.remove(this.#leftTable, dropped));
    }
    this.#close();
  }

  /** After a restore that failed: a lock that the dump left stays, for another try. */
  giveUp(): void {
    this.#close();
  }

  #place(namespace: number | undefined): Rules {
    const rules =
      this.#chosen() === "nftables"
        ? inNetNamespace(namespace, () => new NftablesLock(LOCK_MARK))
        : new IptablesLock(LOCK_MARK, namespace);
    this.#places.push(rules);
    return rules;
  }

  #close(): void {
    for (const rules of this.#places.splice(0)) quietly(() => rules.close());
    for (const namespace of this.#namespaces.splice(0)) closeSync(namespace);
    if (this.#shared !== undefined) closeSync(this.#shared);
    this.#shared = undefined;
    this.#connections = undefined;
  }

  /** The method; the kernel is asked only when there is something to lock. */
  #chosen(): NetworkLockMethod {
    this.#method ??= defaultMethod();
    return this.#method;
  }

  get #leftTable(): string {
    return `CRIU-${this.#runId}`.slice(0, CRIU_TABLE_NAME);
  }

  get #ownTable(): string {
    return `reprise-${process.pid}-${this.#runId}`;
  }
}

/** The connections among the open files of an image set. */
export function savedConnections(files: Iterable<FileEntry>): LockedConnection[] {
  const found: LockedConnection[] = [];
  for (const { isk } of files) {
    if (isk === undefined || isk.type !== SOCK_STREAM || isk.proto !== IPPROTO_TCP) continue;
    // One that is closed already is walked through its states again, too.
    if (isk.dst_port === 0 || isk.state === TCP_LISTEN) continue;
    const end = (words: readonly number[], port: number): SocketAddress => ({
      family: isk.family,
      port,
      bytes: addressBytes(isk.family, words),
      scope: 0,
    });
    found.push({
      local: end(isk.src_addr, isk.src_port),
      remote: end(isk.dst_addr, isk.dst_port),
    });
  }
  return found;
}

/** node:crypto would have to be loaded. */
function newRunId(): string {
  const text = readShortText("/proc/sys/kernel/random/uuid");
  if (typeof text === "number")
    throw syscallError("read", -text, "get a random name from /proc/sys/kernel/random/uuid");
  return text.trim();
}

function quietly(step: () => void): void {
  try {
    step();
  } catch (error) {
    log.warn(`while unlocking the network: ${String(error)}`);
  }
}

function defaultMethod(): NetworkLockMethod {
  const rules = new NftablesLock(LOCK_MARK);
  try {
    return rules.isPossible() ? "nftables" : "iptables";
  } finally {
    rules.close();
  }
}

/** A connection of an IPv6 socket to an IPv4-mapped address is one of IPv4. */
function onTheWire({ local, remote }: LockedConnection): LockedConnection {
  const wire = unmapped(remote);
  if (wire.family !== AF_INET || remote.family === AF_INET) return { local, remote };
  return { local: unmapped(local), remote: wire };
}
