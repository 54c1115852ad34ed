// The network lock by iptables(8) and ip6tables(8), for kernels without nf_tables and for those who ask for it. The rules are
// those of CRIU, which takes them away by the same words. While the engine works, a shell that waits for the engine's end on a
// pipe takes them away should the engine die.

import type * as ChildProcess from "node:child_process";
import { closeSync, existsSync, writeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import { endpoint, type SocketAddress } from "../sockets/inet-address.ts";
import type { LockedConnection } from "./lock.ts";
import type { Dropped } from "./lock-nftables.ts";

/** Rules of one of the two programs. */
interface Rules {
  readonly program: "iptables" | "ip6tables";
  readonly rules: readonly string[];
}

const GUARD_DISMISSED = "dismissed";

/** A lock in one network namespace. */
export class IptablesLock {
  readonly #mark: number;
  readonly #namespace: number | undefined;
  #dropped: Dropped | undefined;
  #guard: number | undefined;

  constructor(mark: number, namespace: number | undefined) {
    this.#mark = mark;
    this.#namespace = namespace;
  }

  /** Whether a lock that drops the same is there. */
  exists(_table: string, dropped: Dropped): boolean {
    const [first] = dropped === "all" ? everything() : this.#connectionRules(dropped);
    const rule = dropped === "all" ? `INPUT -j ${CHAIN}` : first?.rules[0];
    if (first === undefined || rule === undefined) return false;
    try {
      this.#run(first.program, ["-w", "-C", ...rule.split(" ")]);
      return true;
    } catch {
      return false;
    }
  }

  /** @throws RepriseError SYSCALL; nothing is dropped then. */
  drop(_table: string, dropped: Dropped): void {
    this.#dropped = dropped;
    this.#guard = this.#startGuard(dropped);
    for (const { program, rules } of this.#rules(dropped, "-I")) this.#load(program, rules);
  }

  /** @throws RepriseError SYSCALL */
  dropMore(connections: readonly LockedConnection[]): void {
    if (this.#dropped === undefined || this.#dropped === "all") return;
    const before = this.#guard;
    this.#dropped = [...this.#dropped, ...connections];
    this.#guard = this.#startGuard(this.#dropped);
    dismiss(before);
    for (const { program, rules } of this.#rules(connections, "-I")) this.#load(program, rules);
  }

  /** The rules stay. */
  leave(): void {
    dismiss(this.#guard);
    this.#guard = undefined;
    this.#dropped = undefined;
  }

  /** Takes rules away that a dump left. @throws RepriseError SYSCALL */
  remove(_table: string, dropped: Dropped): void {
    for (const part of this.#removal(dropped)) {
      for (const { program, rules } of part) this.#load(program, rules);
    }
  }

  /** Ends what `drop` began. */
  close(): void {
    if (this.#dropped === undefined) return;
    this.remove("", this.#dropped);
    this.leave();
  }

  #rules(dropped: Dropped, how: "-I" | "-D"): Rules[] {
    const rules = dropped === "all" ? everything() : this.#connectionRules(dropped);
    return rules.map(({ program, rules: lines }) => ({
      program,
      rules:
        dropped === "all"
          ? [
              `:${CHAIN} - [0:0]`,
              ...lines.map((line) => `${how} ${line}`),
              `-A ${CHAIN} -m mark --mark ${this.#markText} -j ACCEPT`,
              `-A ${CHAIN} -j DROP`,
            ]
          : lines.map((line) => `${how} ${line}`),
    }));
  }

  /** In steps: the program that works on nf_tables refuses to remove a chain together with the last jump into it. */
  #removal(dropped: Dropped): Rules[][] {
    if (dropped !== "all") return [this.#rules(dropped, "-D")];
    const steps = (lines: readonly string[]): Rules[] =>
      everything().map(({ program }) => ({ program, rules: [`:${CHAIN} - [0:0]`, ...lines] }));
    return [steps([`-D INPUT -j ${CHAIN}`, `-D OUTPUT -j ${CHAIN}`]), steps([`-X ${CHAIN}`])];
  }

  #connectionRules(connections: readonly LockedConnection[]): Rules[] {
    return (["iptables", "ip6tables"] as const).flatMap((program) => {
      const length = program === "iptables" ? 4 : 16;
      const rules = connections
        .filter(({ local }) => local.bytes.length === length)
        .flatMap(({ local, remote }) => [
          this.#connectionRule("INPUT", remote, local),
          this.#connectionRule("OUTPUT", local, remote),
        ]);
      return rules.length === 0 ? [] : [{ program, rules }];
    });
  }

  #connectionRule(chain: string, from: SocketAddress, to: SocketAddress): string {
    const [source, destination] = [endpoint(from), endpoint(to)];
    return [
      `${chain} --protocol tcp -m mark ! --mark ${this.#markText}`,
      `--source ${source.address} --sport ${source.port}`,
      `--destination ${destination.address} --dport ${destination.port} -j DROP`,
    ].join(" ");
  }

  get #markText(): string {
    return `0x${this.#mark.toString(16)}`;
  }

  #load(program: Rules["program"], rules: readonly string[]): void {
    this.#run(`${program}-restore`, ["-w", "--noflush"], restoreText(rules));
  }

  #run(program: string, args: readonly string[], input = ""): void {
    inNetNamespace(this.#namespace, () => run(program, args, input));
  }

  /** A shell that waits for our end of a pipe. */
  #startGuard(dropped: Dropped): number {
    const undo = this.#removal(dropped)
      .flat()
      .map(
        ({ program, rules }) =>
          `printf '%s' '${restoreText(rules)}' | ${program}-restore -w --noflush`,
      );
    const ends = Buffer.alloc(8);
    syscall("pipe2", ends, O_CLOEXEC);
    const [reader, writer] = [ends.readInt32LE(0), ends.readInt32LE(4)];
    try {
      const script = `read -r word; test "$word" = ${GUARD_DISMISSED} || { ${undo.join("; ")}; }`;
      const guard = inNetNamespace(this.#namespace, () =>
        children().spawn("/bin/sh", ["-c", script], {
          stdio: [reader, "ignore", "ignore"],
          detached: true,
        }),
      );
      guard.on("error", () => {});
      guard.unref();
    } finally {
      closeSync(reader);
    }
    return writer;
  }
}

/** Loaded when it is needed: a dump without connections starts no program. */
function children(): typeof ChildProcess {
  return process.getBuiltinModule("node:child_process");
}

const CHAIN = "CRIU";

/** What jumps into the lock's chain; IPv6 may be off. */
function everything(): Rules[] {
  const rules = [`INPUT -j ${CHAIN}`, `OUTPUT -j ${CHAIN}`];
  const programs = existsSync("/proc/sys/net/ipv6")
    ? (["iptables", "ip6tables"] as const)
    : (["iptables"] as const);
  return programs.map((program) => ({ program, rules }));
}

function restoreText(rules: readonly string[]): string {
  return ["*filter", ...rules, "COMMIT", ""].join("\n");
}

function dismiss(guard: number | undefined): void {
  if (guard === undefined) return;
  writeSync(guard, `${GUARD_DISMISSED}\n`);
  closeSync(guard);
}

function run(program: string, args: readonly string[], input: string): void {
  try {
    children().execFileSync(program, args, { stdio: ["pipe", "ignore", "pipe"], input });
  } catch (error) {
    const { stderr } = error as { stderr?: Buffer };
    const said = stderr?.toString().trim().split("\n")[0] ?? "";
    throw new RepriseError(
      "SYSCALL",
      `cannot lock the network: ${program}: ${said === "" ? String(error) : said}`,
      {
        hint: "Choose another method with --network-lock: nftables, or skip if packets are kept away otherwise.",
        cause: error,
      },
    );
  }
}
