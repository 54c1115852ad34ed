// PostgreSQL with sessions in the middle of their work, over TCP from outside and over a Unix socket from inside the tree.
// Its processes share anonymous memory, a System V segment, POSIX segments and semaphores.

import { execFileSync } from "node:child_process";
import { chownSync, readdirSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { join } from "node:path";
import { expect, test } from "vitest";
import { readChildren } from "../../../src/proc/children.ts";
import { readStatIfAlive } from "../../../src/proc/stat.ts";
import { CRIU } from "../real-criu.ts";
import {
  again,
  connectTo,
  OTHER_USERS,
  place,
  ROUNDS,
  says,
  start,
  type CriuLimits,
} from "./program.ts";

const VERSIONS = "/usr/lib/postgresql";
// Debian keeps the programs of each version apart.
const BIN = join(VERSIONS, readdirSync(VERSIONS).sort().at(-1) ?? "", "bin");

/** The root of the tree: the server, and a client that reads its commands from a FIFO. */
const SHELL = `
${BIN}/postgres -D data -k "$PWD" -p "$PORT" -c listen_addresses=127.0.0.1 &
until grep -q 'ready to accept' out; do sleep 0.05; done
exec 3<>commands
${BIN}/psql -X -A -t -h "$PWD" -p "$PORT" -U postgres postgres <&3 >answers 2>&1
`;

/** CRIU saves System V segments only in an IPC namespace of the tree's own, so it gets one, too. */
const PLACES: readonly { readonly where: string; readonly limits: CriuLimits }[] = [
  {
    where: "among others",
    limits: {
      "restored by CRIU": /Can't find sysv shmem for/,
      "dumped by CRIU":
        /Can't get rlimit 0: Operation not permitted|Task \d+ with SysVIPC shmem map/,
    },
  },
  ...(CRIU === undefined ? [] : [{ where: "in its own IPC namespace", limits: OTHER_USERS }]),
];

test.each(PLACES)(
  "PostgreSQL $where keeps its sessions, their transactions and locks",
  async ({ where, limits }) => {
    const { dir, port } = await place("postgres");
    const user = postgresUser();
    chownSync(dir, user.uid, user.gid);
    const asUser = { cwd: dir, ...user, stdio: "pipe" } as const;
    execFileSync(`${BIN}/initdb`, ["-N", "-A", "trust", "-D", "data", "--locale=C.UTF-8"], asUser);
    execFileSync("mkfifo", ["commands"], asUser);
    const env = { PORT: String(port) };
    const ids = ["--reuid", String(user.uid), "--regid", String(user.gid), "--clear-groups"];
    let pid =
      where === "among others"
        ? await start(dir, "sh", ["-c", SHELL], { user, env })
        : await start(dir, "unshare", ["-i", "setpriv", ...ids, "sh", "-c", SHELL], { env });
    await expect
      .poll(() => says(dir), { timeout: 10_000 })
      .toContain("ready to accept connections");
    /** What the client inside of the tree has to say at last. */
    const inside = async (sql: string, answer: RegExp): Promise<void> => {
      writeFileSync(join(dir, "commands"), `${sql};\n`);
      await expect.poll(() => says(dir, "answers"), { timeout: 10_000 }).toMatch(answer);
    };
    const listener = await Session.open(port);
    await listener.query("LISTEN news");
    await listener.query("CREATE TABLE counts (n int)");
    const session = await Session.open(port);
    await session.query("BEGIN");
    await session.query("CREATE TEMP TABLE mine AS SELECT g FROM generate_series(1, 5000) g");
    await session.query("PREPARE add (int) AS INSERT INTO counts VALUES ($1) RETURNING n");
    await session.query("DECLARE walk CURSOR FOR SELECT g FROM mine ORDER BY g");
    await session.query("SELECT pg_advisory_xact_lock(7)");
    expect(await session.query("EXECUTE add(0)")).toEqual(["0"]);
    const waiting = await Session.open(port);
    const locked = waiting.query("SELECT pg_advisory_lock(7), 'locked'");
    await inside("SELECT 'inside', pg_backend_pid()", /inside/);
    const insidePid = /inside\|(\d+)/.exec(says(dir, "answers"))?.[1];

    let n = 0;
    for (const round of ROUNDS) {
      pid = await again(pid, dir, round, limits);
      n += 1;
      expect(await session.query("FETCH 2 FROM walk")).toEqual([`${2 * n - 1}`, `${2 * n}`]);
      expect(await session.query(`EXECUTE add(${n})`)).toEqual([`${n}`]);
      expect(await session.query("SELECT count(*) FROM mine")).toEqual(["5000"]);
      await inside(
        `SELECT 'round', ${n}, pg_backend_pid()`,
        new RegExp(`round.${n}.${insidePid}\n`),
      );
      await inside(`NOTIFY news, '${n}'`, new RegExp(`(NOTIFY[^]*){${n}}`));
      await expect.poll(() => listener.notices, { timeout: 10_000 }).toContain(`news ${n}`);
      const other = await Session.open(port);
      // Not yet committed.
      expect(await other.query("SELECT count(*) FROM counts")).toEqual(["0"]);
      expect(await other.query("SELECT count(*) FROM pg_locks WHERE NOT granted")).toEqual(["1"]);
      other.close();
    }
    await session.query("COMMIT");
    expect(await locked).toEqual(["|locked"]);
    await listener.query("CHECKPOINT");
    await inside("SELECT 'sum', sum(n) FROM counts", new RegExp(`sum.${(n * (n + 1)) / 2}\n`));
    expect(says(dir)).not.toMatch(/ERROR|FATAL|PANIC|crash/);
    // It removes its segments of shared memory.
    const server = readChildren(pid).find((child) => readStatIfAlive(child)?.comm === "postgres");
    process.kill(server ?? 0, "SIGINT");
    await expect
      .poll(() => says(dir), { timeout: 10_000 })
      .toContain("database system is shut down");
  },
  120_000,
);

/** A session in the protocol of PostgreSQL 3.0, with simple queries alone. */
class Session {
  readonly notices: string[] = [];
  readonly #socket: Socket;
  #data = Buffer.alloc(0);
  #rows: string[] = [];
  #error: string | undefined;
  #ready: (() => void) | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (data: Buffer) => this.#receive(data));
  }

  static async open(port: number): Promise<Session> {
    const session = new Session(await connectTo(port));
    const body = Buffer.from("\0\x03\0\0user\0postgres\0database\0postgres\0\0", "latin1");
    await session.#send(Buffer.concat([lengthOf(body), body]));
    return session;
  }

  /** The rows, their columns with a bar between them. */
  async query(sql: string): Promise<string[]> {
    const body = Buffer.from(`${sql}\0`);
    await this.#send(Buffer.concat([Buffer.from("Q"), lengthOf(body), body]));
    return this.#rows;
  }

  close(): void {
    this.#socket.end(Buffer.from("X\0\0\0\x04", "latin1"));
  }

  #send(message: Buffer): Promise<void> {
    this.#rows = [];
    this.#error = undefined;
    return new Promise((resolve, reject) => {
      this.#ready = () => {
        if (this.#error === undefined) resolve();
        else reject(new Error(this.#error));
      };
      this.#socket.write(message);
    });
  }

  #receive(data: Buffer): void {
    this.#data = Buffer.concat([this.#data, data]);
    while (this.#data.length >= 5) {
      const end = 1 + this.#data.readUInt32BE(1);
      if (this.#data.length < end) return;
      this.#take(String.fromCharCode(this.#data[0] ?? 0), this.#data.subarray(5, end));
      this.#data = this.#data.subarray(end);
    }
  }

  #take(kind: string, body: Buffer): void {
    if (kind === "D") this.#rows.push(columns(body).join("|"));
    if (kind === "E") this.#error = body.toString().replaceAll("\0", " ");
    if (kind === "A") this.notices.push(body.toString("utf8", 4).split("\0", 2).join(" "));
    if (kind === "Z") this.#ready?.();
  }
}

function columns(body: Buffer): string[] {
  const texts: string[] = [];
  let at = 2;
  while (texts.length < body.readUInt16BE(0)) {
    const length = Math.max(body.readInt32BE(at), 0);
    texts.push(body.toString("utf8", at + 4, at + 4 + length));
    at += 4 + length;
  }
  return texts;
}

function lengthOf(body: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length + 4);
  return length;
}

function postgresUser(): { uid: number; gid: number } {
  const id = (option: string): number => Number(execFileSync("id", [option, "postgres"]));
  return { uid: id("-u"), gid: id("-g") };
}
