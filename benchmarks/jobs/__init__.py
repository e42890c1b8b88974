"""What is measured: functions that each run in a process of their own."""
