import { expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { KernelMemory } from "../../src/sys/kernel-memory.ts";
import { imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("threads");

test.runIf(mayLookIntoKernel())(
  "of threads that are alike one is asked, and of others each",
  async () => {
    // A stop of each thread for the freeze, and a few of the leader and of who is asked.
    expect((await stopsOf("threads", "100")) - 101).toBeLessThan(12);
    // 16 kinds of threads, of which some are alike.
    const unlike = await stopsOf("unlike_threads");
    expect(unlike - 49).toBeGreaterThan(20);
  },
);

async function stopsOf(name: string, ...args: readonly string[]): Promise<number> {
  const program = await start(name, args);
  const { stats } = await checkpoint({
    pid: program.pid,
    imagesDir: imagesDirOf(program),
    leave: "running",
  });
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
  return stats.stops;
}

function mayLookIntoKernel(): boolean {
  try {
    new KernelMemory()[Symbol.dispose]();
    return true;
  } catch {
    return false;
  }
}
