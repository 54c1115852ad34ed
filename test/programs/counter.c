// The plainest process: memory, registers and one open file. Every 20 ms it appends the next number
// to a file; a number lost, repeated or torn shows that something ran twice or was forgotten.
#include "test.h"

static long count;
static int file;

static void tick(void) {
  char line[32];
  int length = snprintf(line, sizeof line, "%ld\n", ++count);
  EXPECT(write(file, line, length) == length, "cannot append: %m");
}

static void check(void) {
  long before = count, seen = 0, number;
  while (count < before + 3) {
    sleep_ms(20);
    tick();
  }
  FILE *numbers = fopen("counter.numbers", "re");
  EXPECT(numbers != NULL, "cannot open the file: %m");
  if (numbers == NULL) return;
  while (fscanf(numbers, "%ld", &number) == 1) {
    seen++;
    EXPECT(number == seen, "number %ld stands in line %ld", number, seen);
  }
  fclose(numbers);
  EXPECT(seen == count, "%ld numbers in the file, wanted %ld", seen, count);
}

static void lose_one(void) { count++; }

int main(void) {
  begin();
  tamper = lose_one;
  file = MUST(open("counter.numbers", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644));
  serve_ticking(check, 20, tick);
}
