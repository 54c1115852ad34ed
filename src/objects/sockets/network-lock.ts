// The network lock: firewall rules that keep the packets of saved connections away, so that no peer is told that the
// connection is gone while nobody is there to answer (nft(8), iptables(8)). After a dump that ends the tasks it stays, and
// the restore takes it away; so it is named and shaped as CRIU's is, which finds ours and leaves its own to us.

import { execFileSync, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { closeSync, writeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { InventoryEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { isMapped, type Endpoint } from "./inet-address.ts";

/** How connections are locked; `skip` leaves it to the caller to keep packets away. */
export type NetworkLockMethod = "nftables" | "iptables" | "skip";

/** network_lock_method of the inventory. */
const METHODS: readonly NetworkLockMethod[] = ["iptables", "nftables", "skip"];

/** Packets with this mark pass: the restore's own. */
export const LOCK_MARK = 0xc114;

/** The two ends of a connection. */
export interface Connection {
  readonly local: Endpoint;
  readonly remote: Endpoint;
}

export class NetworkLock {
  readonly method: NetworkLockMethod;
  readonly #runId: string;
  #connections: readonly Connection[] = [];
  #made = false;
  #guard: number | undefined;

  private constructor(method: NetworkLockMethod, runId: string) {
    this.method = method;
    this.#runId = runId;
  }

  /** A lock for a dump: nftables if nothing else is asked for and nft(8) is there, else iptables. */
  static forDump(method: NetworkLockMethod | undefined): NetworkLock {
    return new NetworkLock(
      method ?? (works("nft", "list", "tables") ? "nftables" : "iptables"),
      randomUUID(),
    );
  }

  /** The lock that the dump of an image set left behind, or would have. */
  static ofSet(inventory: InventoryEntry, rootPid: number): NetworkLock {
    const method = METHODS[inventory.network_lock_method ?? 0] ?? "skip";
    return new NetworkLock(method, inventory.dump_criu_run_id ?? String(rootPid));
  }

  /** What a restore must know to find the lock. */
  get inventory(): Pick<InventoryEntry, "network_lock_method" | "dump_criu_run_id"> {
    return { network_lock_method: METHODS.indexOf(this.method), dump_criu_run_id: this.#runId };
  }

  /**
   * Locks connections. A guard process takes the lock away if this process dies before `unlock` or `leave`.
   *
   * @throws RepriseError SYSCALL when the firewall cannot be set up; nothing stays locked then.
   */
  lock(connections: readonly Connection[]): void {
    this.#connections = connections;
    if (this.method === "skip" || connections.length === 0) return;
    this.#made = true;
    this.#guard = startGuard(this.#commands("remove"));
    try {
      for (const [program, ...args] of this.#commands("add")) run(program as string, args);
    } catch (error) {
      this.unlock();
      throw error;
    }
  }

  /** For a restore: takes over the lock that the dump left, or makes one. */
  takeOver(connections: readonly Connection[]): void {
    this.#connections = connections;
    if (this.method === "skip" || connections.length === 0) return;
    if (this.#exists()) return;
    try {
      this.lock(connections);
    } catch (error) {
      // The firewall was another machine's; without a lock a peer may see a packet too early, no more.
      log.warn(`connections are restored without a network lock: ${String(error)}`);
      this.#made = false;
    }
  }

  /** Lets the packets through again. */
  unlock(): void {
    if (this.method === "skip" || this.#connections.length === 0) return;
    for (const [program, ...args] of this.#commands("remove")) {
      try {
        run(program as string, args);
      } catch (error) {
        log.warn(`while unlocking the network: ${String(error)}`);
      }
    }
    this.leave();
  }

  /** Leaves the lock to the restore. */
  leave(): void {
    this.#made = false;
    if (this.#guard === undefined) return;
    writeSync(this.#guard, `${GUARD_DISMISSED}\n`);
    closeSync(this.#guard);
    this.#guard = undefined;
  }

  /** After a restore that failed: a lock that the dump left stays, for another try. */
  giveUp(): void {
    if (this.#made) this.unlock();
  }

  #exists(): boolean {
    if (this.method === "nftables") return works("nft", "list", "table", "inet", this.#table);
    const [first] = iptablesRules(this.#connections);
    return first !== undefined && works(first.program, "-w", "-C", ...first.rule);
  }

  get #table(): string {
    return `CRIU-${this.#runId}`;
  }

  #commands(what: "add" | "remove"): readonly (readonly string[])[] {
    if (this.method === "nftables") {
      const table = `inet ${this.#table}`;
      return [
        ["nft", what === "add" ? nftScript(table, this.#connections) : `delete table ${table}`],
      ];
    }
    const action = what === "add" ? "-I" : "-D";
    return iptablesRules(this.#connections).map(({ program, rule }) => [
      program,
      "-w",
      action,
      ...rule,
    ]);
  }
}

/** One transaction: all of it or nothing. */
function nftScript(table: string, connections: readonly Connection[]): string {
  const lines = [`create table ${table}`];
  for (const family of [4, 6]) {
    const address = `ipv${family}_addr . inet_service`;
    lines.push(`add set ${table} conns${family} { type ${address} . ${address}; }`);
  }
  for (const hook of ["output", "input"]) {
    lines.push(
      `add chain ${table} ${hook} { type filter hook ${hook} priority 0; }`,
      `add rule ${table} ${hook} meta mark ${LOCK_MARK} accept`,
    );
    for (const [family, ip] of [
      [4, "ip"],
      [6, "ip6"],
    ] as const) {
      const packet = `${ip} saddr . tcp sport . ${ip} daddr . tcp dport`;
      lines.push(`add rule ${table} ${hook} ${packet} @conns${family} drop`);
    }
  }
  const elements = new Map<string, Set<string>>();
  for (const connection of connections) {
    const { local, remote } = onTheWire(connection);
    const set = `conns${local.family === "ipv4" ? 4 : 6}`;
    const known = elements.get(set) ?? new Set();
    elements.set(set, known);
    for (const [from, to] of [
      [remote, local],
      [local, remote],
    ] as const) {
      known.add(`${from.address} . ${from.port} . ${to.address} . ${to.port}`);
    }
  }
  for (const [set, known] of elements)
    lines.push(`add element ${table} ${set} { ${[...known].join(", ")} }`);
  return lines.join("\n");
}

function iptablesRules(
  connections: readonly Connection[],
): { readonly program: string; readonly rule: readonly string[] }[] {
  return connections.flatMap((connection) => {
    const { local, remote } = onTheWire(connection);
    const program = local.family === "ipv4" ? "iptables" : "ip6tables";
    const rule = (chain: string, from: Endpoint, to: Endpoint): readonly string[] => [
      chain,
      "--protocol",
      "tcp",
      "-m",
      "mark",
      "!",
      "--mark",
      `0x${LOCK_MARK.toString(16)}`,
      "--source",
      from.address,
      "--sport",
      String(from.port),
      "--destination",
      to.address,
      "--dport",
      String(to.port),
      "-j",
      "DROP",
    ];
    return [
      { program, rule: rule("INPUT", remote, local) },
      { program, rule: rule("OUTPUT", local, remote) },
    ];
  });
}

/** A connection of an IPv6 socket to an IPv4-mapped address is one of IPv4. */
function onTheWire({ local, remote }: Connection): Connection {
  if (!isMapped(remote)) return { local, remote };
  const plain = ({ address, port }: Endpoint): Endpoint => ({
    family: "ipv4",
    address: address.slice(address.lastIndexOf(":") + 1),
    port,
  });
  return { local: plain(local), remote: plain(remote) };
}

const GUARD_DISMISSED = "dismissed";

/** A shell that waits for our end on a pipe. */
function startGuard(commands: readonly (readonly string[])[]): number {
  const undo = commands.map((words) => words.map((word) => `'${word}'`).join(" ")).join("; ");
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, O_CLOEXEC);
  const [reader, writer] = [ends.readInt32LE(0), ends.readInt32LE(4)];
  try {
    const script = `read -r word; test "$word" = ${GUARD_DISMISSED} || { ${undo}; }`;
    const guard = spawn("/bin/sh", ["-c", script], {
      stdio: [reader, "ignore", "ignore"],
      detached: true,
    });
    guard.on("error", () => {});
    guard.unref();
  } finally {
    closeSync(reader);
  }
  return writer;
}

function works(program: string, ...args: readonly string[]): boolean {
  try {
    execFileSync(program, args, { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

function run(program: string, args: readonly string[]): void {
  try {
    execFileSync(program, args, { stdio: ["ignore", "ignore", "pipe"] });
  } catch (error) {
    const said =
      String((error as { stderr?: unknown }).stderr ?? error)
        .trim()
        .split("\n")[0] ?? "";
    throw new RepriseError("SYSCALL", `cannot lock the network: ${program}: ${said}`, {
      hint: "Choose another method with --network-lock: nftables, iptables, or skip if packets are kept away otherwise.",
      cause: error,
    });
  }
}
