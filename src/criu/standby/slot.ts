// One slot: a resident engine, and the command that has taken it.

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { Socket } from "node:net";
import { join } from "node:path";
import { AT_FDCWD, S_IFIFO } from "../../sys/abi/fcntl.ts";
import { readStatIfAlive } from "../../proc/stat.ts";
import { syscall } from "../../sys/ffi.ts";
import { BEGUN, COLD, DIED, FIRST_OWN_FD, type Report, type Request } from "./protocol.ts";

/** How often a slot is looked at that a command took and said nothing. */
const LOOK_MS = 1000;
/** After so long an engine that ended before it was ready is tried again. */
const RETRY_MS = 5000;
const STDERR = 2;

export class Slot {
  /** Resolves when an engine is ready for the first time. */
  readonly ready: Promise<void>;
  readonly #directory: string;
  readonly #surroundings: SlotSurroundings;
  /** Held open, so that a command that waits sees the end of this process as the end of the file. */
  readonly #answer: number;
  readonly #look: NodeJS.Timeout;
  #isReady: () => void = () => undefined;
  #engine: "starting" | "idle" | "working" | "ended" = "starting";
  #worker: ChildProcess;
  /** Where a command asks. */
  #requests: Socket | undefined;
  /** Whether one has asked and is still there. */
  #isWaited = false;

  constructor(directory: string, surroundings: SlotSurroundings) {
    this.ready = new Promise((resolve) => (this.#isReady = resolve));
    this.#directory = directory;
    this.#surroundings = surroundings;
    mkdirSync(directory, { mode: 0o700 });
    writeFileSync(this.#path("busy"), "");
    for (const name of ["request", "answer"])
      syscall("mknodat", AT_FDCWD, Buffer.from(`${this.#path(name)}\0`), S_IFIFO | 0o600, 0);
    this.#answer = openSync(this.#path("answer"), constants.O_RDWR | constants.O_NONBLOCK);
    this.#worker = this.#start();
    this.#look = setInterval(() => this.#forgetTheDead(), LOOK_MS);
  }

  /** Ends the engine when it has done what it does. */
  async end(): Promise<void> {
    clearInterval(this.#look);
    const isWorking = this.#engine === "working";
    this.#engine = "ended";
    // No command comes any more.
    rmSync(this.#path("request"), { force: true });
    const worker = this.#worker;
    if (worker.exitCode === null && worker.signalCode === null) {
      const ended = once(worker, "exit");
      // Its answer goes to the command first: see #hear.
      if (isWorking) await Promise.race([once(worker, "message"), ended]);
      worker.kill("SIGKILL");
      await ended;
    }
    this.#requests?.destroy();
    closeSync(this.#answer);
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #path(name: string): string {
    return join(this.#directory, name);
  }

  #start(): ChildProcess {
    const nothing = openSync("/dev/null", "r+");
    const worker = spawn(
      process.execPath,
      [...process.execArgv, process.argv[1] ?? "", "standby-worker", this.#directory],
      {
        // A session of its own: a terminal's signals are not for it.
        detached: true,
        cwd: "/",
        env: { PATH: process.env["PATH"] ?? "" },
        // Real ones: Node's own would take the numbers of those that are left out.
        stdio: [...Array.from({ length: FIRST_OWN_FD }, () => nothing), "ipc", STDERR],
      },
    );
    closeSync(nothing);
    worker.on("message", (report: Report) => this.#hear(report));
    worker.once("exit", () => this.#replace());
    return worker;
  }

  #hear(report: Report): void {
    if (report.kind === "answer") {
      if (report.refused !== undefined) tell(`a command does its work itself: ${report.refused}`);
      writeSync(this.#answer, `${report.text}\n`);
    }
    if (this.#engine === "ended") return;
    // One that retires ends by itself, and is replaced then.
    if (report.kind === "retires") tell(`an engine is replaced: ${report.why}`);
    this.#engine = report.kind === "ready" ? "idle" : "starting";
    if (this.#engine !== "idle") return;
    this.#isReady();
    this.#offer();
  }

  /** Lets the next command come when the one before has read its answer and is gone. */
  #offer(): void {
    if (this.#engine !== "idle" || this.#isWaited) return;
    // What nobody has read is for nobody.
    this.#drain();
    if (this.#requests === undefined) this.#listen();
    rmSync(this.#path("busy"), { force: true });
  }

  #drain(): void {
    try {
      while (readSync(this.#answer, Buffer.alloc(64)) > 0);
    } catch {
      // It is empty.
    }
  }

  #listen(): void {
    const fd = openSync(this.#path("request"), constants.O_RDONLY | constants.O_NONBLOCK);
    const requests = new Socket({ fd, readable: true, writable: false });
    let text = "";
    requests.on("data", (bytes) => {
      text += bytes.toString("latin1");
      if (text.endsWith("\n")) this.#pass(text);
    });
    requests.on("error", () => undefined);
    requests.once("close", () => this.#lose());
    this.#requests = requests;
  }

  /** A command asks. */
  #pass(text: string): void {
    if (this.#engine !== "idle" || this.#isWaited) return;
    this.#isWaited = true;
    if (!this.#surroundings.isCurrent()) {
      writeSync(this.#answer, `${COLD}\n`);
      return this.#surroundings.onStale();
    }
    const [front = 0, words = 0, input = 0, output = 0, answer = 0, request = 0] = text
      .trim()
      .split(" ")
      .map(Number);
    this.#engine = "working";
    writeSync(this.#answer, `${BEGUN}\n`);
    const fds = { input, output, answer, request };
    this.#worker.send({ front, words, ...fds, fifo: this.#path("request") } satisfies Request);
  }

  /** The command has ended. If that was before its work was done, the engine ends as if it had been the command. */
  #lose(): void {
    if (this.#engine === "ended") return;
    const hasAsked = this.#isWaited;
    this.#isWaited = false;
    this.#requests = undefined;
    if (this.#engine === "working") this.#worker.kill("SIGKILL");
    else if (hasAsked) this.#offer();
    // Another one may have taken the slot by now, and be about to ask.
    else this.#listen();
  }

  #replace(): void {
    if (this.#engine === "ended") return;
    const delay = this.#engine === "starting" && this.#worker.exitCode !== 0 ? RETRY_MS : 0;
    if (this.#engine === "working" && this.#isWaited) writeSync(this.#answer, `${DIED}\n`);
    if (this.#engine === "idle") writeFileSync(this.#path("busy"), "");
    this.#engine = "starting";
    setTimeout(() => {
      if (this.#engine !== "ended") this.#worker = this.#start();
    }, delay);
  }

  /** A command that was killed between taking the slot and asking. */
  #forgetTheDead(): void {
    if (this.#engine !== "idle" || this.#isWaited || !existsSync(this.#path("busy"))) return;
    const pid = Number(readFileSync(this.#path("busy"), "latin1"));
    if (pid > 0 && readStatIfAlive(pid) === undefined) rmSync(this.#path("busy"), { force: true });
  }
}

function tell(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** What a slot asks its keeper. */
export interface SlotSurroundings {
  /** Whether the executable still is the one that runs. */
  isCurrent(): boolean;
  /** It is not. */
  onStale(): void;
}
