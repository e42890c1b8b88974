"""Who answers a request: the champion, a challenger for some users, or popularity where no model can."""
