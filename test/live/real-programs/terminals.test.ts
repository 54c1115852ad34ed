// Programs on terminals of their own: a tmux server with an editor in it and a client attached, and shells inside shells
// under script(1). Keys come in through a FIFO.

import { execFileSync } from "node:child_process";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { again, directory, ROUNDS, says, start } from "./program.ts";

const TMUX = `
exec 3<>keys
tmux -D -S socket -f config &
until tmux -N -S socket new-session -d -x 80 -y 24 'exec vim -u NONE -N text' 2>/dev/null; do sleep 0.02; done
exec script -q -f -c 'stty rows 24 cols 80; exec tmux -S socket attach' typescript <&3 >screen
`;

test("tmux keeps an editor with unsaved changes, and its client", async () => {
  const dir = directory("tmux");
  execFileSync("mkfifo", ["keys"], { cwd: dir });
  writeFileSync(join(dir, "config"), "set -s exit-empty off\nset -g status off\n");
  let pid = await start(dir, "sh", ["-c", TMUX], { env: { TERM: "xterm", LC_ALL: "C.UTF-8" } });
  const type = (keys: string): void => appendFileSync(join(dir, "keys"), keys);
  const tmux = (...args: string[]): string =>
    execFileSync("tmux", ["-S", "socket", ...args], { cwd: dir, encoding: "utf8" });
  const shows = (text: string): Promise<void> =>
    expect.poll(() => tmux("capture-pane", "-p"), { timeout: 10_000 }).toContain(text);
  const text = (): string => readFileSync(join(dir, "text"), "utf8");
  await expect.poll(() => says(dir, "screen"), { timeout: 10_000 }).toContain("[New]");
  tmux("set-buffer", "a thing to paste");
  type("iwritten first\r");
  await shows("written first");
  for (const [round, how] of ROUNDS.entries()) {
    type(`unsaved ${round}`);
    await shows(`unsaved ${round}`);
    pid = await again(pid, dir, how);
    await shows(`unsaved ${round}`); // the server answers
    type(` and typed after\r`); // the client goes on, and vim is still inserting
    await shows(`unsaved ${round} and typed after`);
    expect(tmux("list-clients", "-F", "#{client_width}x#{client_height}")).toBe("80x24\n");
    type("\x1b:w\r");
    await expect.poll(() => says(dir, "text")).toContain(`unsaved ${round} and typed after\n`);
    type("A");
    await shows("-- INSERT --");
  }
  expect(tmux("show-buffer")).toBe("a thing to paste");
  // What was undone was typed before the first dump.
  tmux("send-keys", "Escape");
  for (const _ of ROUNDS) tmux("send-keys", ":earlier 1f", "Enter");
  tmux("send-keys", ":w", "Enter");
  await expect.poll(text).toBe("");
  tmux("new-window", "-d", "echo a new window >window");
  await expect.poll(() => says(dir, "window")).toBe("a new window\n");
  tmux("kill-server");
}, 60_000);

const SHELLS = `
exec 3<>keys
export PS1='$ '
exec script -q -f -c 'stty rows 30 cols 90; exec bash --norc --noprofile -i' typescript <&3 >screen
`;

test("shells inside shells keep their terminal and their jobs under script", async () => {
  const dir = directory("script");
  execFileSync("mkfifo", ["keys"], { cwd: dir });
  let pid = await start(dir, "sh", ["-c", SHELLS], { env: { TERM: "dumb" } });
  const type = (keys: string): void => appendFileSync(join(dir, "keys"), keys);
  /** What is new on the screen contains this in the end. */
  const shows = (after: number, what: RegExp): Promise<void> =>
    expect.poll(() => says(dir, "screen").slice(after), { timeout: 10_000 }).toMatch(what);
  const enter = async (command: string, answer: RegExp): Promise<void> => {
    const after = says(dir, "screen").length;
    type(`${command}\n`);
    await shows(after, answer);
  };
  await shows(0, /\$ $/);
  await enter("level=outer; sleep 1000 &", /\[1\] \d+/);
  await enter("bash --norc --noprofile -i", /\$ $/);
  await enter("level=inner; cat", /cat\r\n/);
  for (const [round, how] of ROUNDS.entries()) {
    await enter(`before ${round}`, /before.*\r\nbefore/);
    pid = await again(pid, dir, how);
    await enter(`after ${round}`, /after.*\r\nafter/);
    // The job in the foreground takes its terminal's signals; the shell sees what became of it.
    const after = says(dir, "screen").length;
    type("\x1a");
    await shows(after, /\[1\]\+ +Stopped +cat\r\n/);
    await enter('echo "$level of $(stty size)"', /inner of 30 90\r\n/);
    pid = await again(pid, dir, how);
    await enter("jobs", /\[1\]\+ +Stopped +cat\r\n/);
    await enter("fg", /cat\r\n/);
  }
  const after = says(dir, "screen").length;
  type("\x03");
  await shows(after, /\$ $/);
  await enter("exit", /exit\r\n.*\$ $/s);
  await enter('echo "$level"; jobs', /outer\r\n\[1\]\+ +Running +sleep 1000/);
  await enter("kill %1; exit", /exit\r\n/);
  await expect.poll(() => says(dir, "typescript")).toContain("exit");
}, 60_000);
