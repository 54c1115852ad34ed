// Tests lie beside the code they test. Live tests freeze and restore real
// processes, so they run one file at a time, each in a process of its own
// (ptrace belongs to one thread, and pids of a restored tree must be free).
import { defineConfig } from "vitest/config";

// oxlint-disable-next-line import/no-default-export -- vitest reads the default export
export default defineConfig({
  test: {
    include: ["src/**/*.test.ts", "test/**/*.test.ts", "tools/**/*.test.ts"],
    pool: "forks",
    fileParallelism: false,
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
