// Starts real programs for a test, talks to them from outside, and takes them through a dump and a restore.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished } from "vitest";
import { checkpoint } from "../../../src/engine/checkpoint.ts";
import { restore } from "../../../src/engine/restore.ts";
import { attachProgram, killProgram, makeDir, removeDir } from "../programs.ts";
import { CRIU, criu, hasCrit, notDecoded, restoreWithCriu } from "../real-criu.ts";

const TCP = { tcp: { established: true } };
const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** How a program is brought back. */
export type Round = "as it was" | "in a new pid namespace" | "restored by CRIU" | "dumped by CRIU";

/**
 * What every program goes through; the clone in the new namespace is saved and brought back, too. With CRIU at hand (real-criu.ts)
 * images go both ways, and crit reads ours.
 */
export const ROUNDS: readonly Round[] = [
  "as it was",
  ...(CRIU === undefined ? [] : (["restored by CRIU", "dumped by CRIU"] as const)),
  "in a new pid namespace",
  "as it was",
];

/** What CRIU says where it cannot do its half. */
export type CriuLimits = Readonly<Partial<Record<Round, RegExp>>>;

export interface StartOptions {
  /** Added to an environment that has little more than PATH. */
  readonly env?: Readonly<Record<string, string>>;
  /** User and group. @default root */
  readonly user?: { readonly uid: number; readonly gid: number };
}

/** A directory of the test. */
export function directory(name: string): string {
  const dir = makeDir(name);
  onTestFinished(() => removeDir(dir));
  return dir;
}

/** A directory and a free port. */
export async function place(name: string): Promise<{ dir: string; port: number }> {
  const dir = directory(name);
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return { dir, port };
}

/** Starts a program in a session of its own; it ends with the test. */
export async function start(
  dir: string,
  command: string,
  args: readonly string[],
  options: StartOptions = {},
): Promise<number> {
  const out = openSync(join(dir, "out"), "a");
  const child = spawn(command, args, {
    cwd: dir,
    detached: true,
    stdio: ["ignore", out, out],
    env: { PATH, ...options.env },
    ...options.user,
  });
  closeSync(out);
  await once(child, "spawn");
  child.unref();
  const { pid } = child;
  if (pid === undefined) throw new Error(`cannot start ${command}`);
  endWithTest(pid, dir);
  return pid;
}

/** Kills what is left of a program when the test is over. */
export function endWithTest(pid: number, dir: string): void {
  onTestFinished(() => killProgram(attachProgram("program", pid, dir)));
}

/** Of a tree with tasks of other users, whose limits CRIU reads from outside. */
export const OTHER_USERS: CriuLimits = mayReadLimits()
  ? {}
  : { "dumped by CRIU": /Can't get rlimit 0: Operation not permitted/ };

/** CAP_SYS_RESOURCE. */
function mayReadLimits(): boolean {
  const capabilities = /^CapEff:\t(\w+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return ((BigInt(`0x${capabilities ?? "0"}`) >> 24n) & 1n) === 1n;
}

/** Saves and ends it, and brings it back. Where CRIU cannot, Reprise does. The root's pid as seen from here. */
export async function again(
  pid: number,
  dir: string,
  round: Round,
  limits: CriuLimits = {},
): Promise<number> {
  const imagesDir = mkdtempSync(join(dir, "images-"));
  const limit = limits[round];
  if (round === "dumped by CRIU") {
    const work = (): void => criu("dump", imagesDir, ["-t", String(pid)]);
    if (limit === undefined) work();
    else expect(work, "no limit of CRIU any more?").toThrow(limit);
  }
  if (round !== "dumped by CRIU" || limit !== undefined)
    await checkpoint({ pid, imagesDir, ...TCP });
  if (round === "restored by CRIU") {
    if (hasCrit()) expect(await notDecoded(imagesDir)).toEqual([]);
    const work = restoreWithCriu(imagesDir);
    if (limit === undefined) {
      await work;
      endWithTest(pid, dir);
      return pid;
    }
    await expect(work, "no limit of CRIU any more?").rejects.toThrow(limit);
  }
  const cloned = round === "in a new pid namespace" ? { newPidNamespace: true } : {};
  const restored = await restore({ imagesDir, ...TCP, ...cloned });
  endWithTest(restored.pid, dir);
  return restored.pid;
}

/** What a file in the program's directory says; nothing if there is none. */
export function says(dir: string, name = "out"): string {
  const path = join(dir, name);
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}

/** A connection to a server that may still be starting. */
export async function connectTo(port: number): Promise<Socket> {
  for (const end = Date.now() + 10_000; ;) {
    const client = connect(port, "127.0.0.1");
    onTestFinished(() => void client.destroy());
    try {
      await once(client, "connect");
      return client;
    } catch (error) {
      if (Date.now() > end) throw error;
      await sleep(20);
    }
  }
}

/** Sends a request, and gives what comes next. */
export function ask(client: Socket, request: string): Promise<string> {
  const answer = received(client);
  client.write(request);
  return answer;
}

/** What comes next. */
export async function received(client: Socket): Promise<string> {
  const [data] = (await once(client, "data", { signal: AbortSignal.timeout(15_000) })) as [Buffer];
  return data.toString();
}
