"""For runs that outgrow one process, one memory or one sitting."""
